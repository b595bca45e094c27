/*-------------------------------------------------------------------------
 * letter.c
 *	  Events that no consumer could handle.
 *
 * Such an event is parked in es.subscription_dead_letter, and its partition
 * goes on.  The order within its stream holds all the same: what follows in
 * the stream is parked behind it when its turn comes.  A stream's first parked
 * event is the one with status "parked", so to know the streams that are
 * blocked only these rows are read, however many wait behind them.
 *
 * After es_retry_delivery() the events of the stream have status "retry" and
 * are handed out ahead of what is new, and "delivered" until they are
 * acknowledged, which removes them.
 *
 * All functions run between es_spi_begin() and es_spi_end(), by whoever has
 * locked the partition.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "fanout/letter.h"
#include "utils/array.h"
#include "utils/builtins.h"

static EsStatement select_letters = ES_SQL(
	"SELECT partition, position, stream, status = 'parked', deliveries "
	"FROM es.subscription_dead_letter "
	"WHERE subscription = $1 AND status <> 'behind' ORDER BY position", 1, TEXTOID);
static EsStatement find_letter = ES_SQL(
	"SELECT partition, position, stream, false, deliveries FROM es.subscription_dead_letter "
	"WHERE subscription = $1 AND position = $2 AND status = 'delivered'", 2, TEXTOID, INT8OID);
static EsStatement park_letter = ES_SQL(
	"WITH followers AS (UPDATE es.subscription_dead_letter SET status = 'behind' "
	"  WHERE subscription = $1 AND stream = $4 AND position > $2 AND status <> 'behind') "
	"INSERT INTO es.subscription_dead_letter AS d "
	"  (subscription, position, partition, stream, status, deliveries, error) "
	"VALUES ($1, $2, $3, $4, 'parked', $5, $6) "
	"ON CONFLICT (subscription, position) DO UPDATE SET status = 'parked', "
	"  deliveries = excluded.deliveries, error = excluded.error, parked_at = clock_timestamp()",
	6, TEXTOID, INT8OID, INT4OID, TEXTOID, INT4OID, TEXTOID);
static EsStatement park_behind = ES_SQL(
	"INSERT INTO es.subscription_dead_letter "
	"  (subscription, position, partition, stream, status, deliveries) "
	"VALUES ($1, $2, $3, $4, 'behind', 0) ON CONFLICT DO NOTHING",
	4, TEXTOID, INT8OID, INT4OID, TEXTOID);
static EsStatement mark_delivered = ES_SQL(
	"UPDATE es.subscription_dead_letter SET status = 'delivered', deliveries = deliveries + 1 "
	"WHERE subscription = $1 AND position = $2", 2, TEXTOID, INT8OID);
static EsStatement acknowledge = ES_SQL(
	"DELETE FROM es.subscription_dead_letter WHERE subscription = $1 "
	"AND partition = ANY ($2) AND position <= $3 AND status = 'delivered'",
	3, TEXTOID, INT4ARRAYOID, INT8OID);
static EsStatement take_back = ES_SQL(
	"UPDATE es.subscription_dead_letter SET status = 'retry' "
	"WHERE subscription = $1 AND partition = $2 AND position >= $3 AND status = 'delivered'",
	3, TEXTOID, INT4OID, INT8OID);

static void
read_letter(EsLetter *letter, uint64 row)
{
	bool		isnull;

	letter->partition = DatumGetInt32(es_spi_value(row, 1, &isnull));
	letter->position = DatumGetInt64(es_spi_value(row, 2, &isnull));
	letter->stream = DatumGetTextPCopy(es_spi_value(row, 3, &isnull));
	letter->parked = DatumGetBool(es_spi_value(row, 4, &isnull));
	letter->deliveries = DatumGetInt32(es_spi_value(row, 5, &isnull));
}

/*
 * Read the letters of a subscription but those that are behind others.
 */
void
es_letters_load(EsLetters *letters, const EsSubscription *subscription)
{
	Datum		key = PointerGetDatum(subscription->name);

	letters->n = (int) es_run(&select_letters, &key, NULL);
	letters->max = letters->n + 8;
	letters->letters = palloc(sizeof(EsLetter) * letters->max);
	for (int i = 0; i < letters->n; i++)
		read_letter(&letters->letters[i], i);
}

static bool
same_text(const text *a, const text *b)
{
	return VARSIZE_ANY_EXHDR(a) == VARSIZE_ANY_EXHDR(b) &&
		memcmp(VARDATA_ANY(a), VARDATA_ANY(b), VARSIZE_ANY_EXHDR(a)) == 0;
}

/*
 * Whether an event is parked, or has to wait behind one of its stream that is.
 */
bool
es_letters_block(const EsLetters *letters, const text *stream, int64 position)
{
	for (int i = 0; i < letters->n; i++)
		if (letters->letters[i].parked &&
			letters->letters[i].position <= position &&
			same_text(letters->letters[i].stream, stream))
			return true;
	return false;
}

/*
 * Park an event, the letter for which is given, and with it what there is of
 * its stream behind it.
 */
void
es_letter_park(EsLetters *letters, const EsSubscription *subscription,
			   EsLetter letter, const char *error)
{
	Datum		values[6];

	values[0] = PointerGetDatum(subscription->name);
	values[1] = Int64GetDatum(letter.position);
	values[2] = Int32GetDatum(letter.partition);
	values[3] = PointerGetDatum(letter.stream);
	values[4] = Int32GetDatum(letter.deliveries);
	values[5] = CStringGetTextDatum(error);
	(void) es_run(&park_letter, values, NULL);
	if (letters == NULL)
		return;
	if (letters->n == letters->max)
	{
		letters->max *= 2;
		letters->letters = repalloc(letters->letters,
									sizeof(EsLetter) * letters->max);
	}
	letter.parked = true;
	letters->letters[letters->n++] = letter;
}

/*
 * Park an event behind another one of its stream.
 */
void
es_letter_park_behind(const EsSubscription *subscription, int partition,
					  int64 position, const text *stream)
{
	Datum		values[4];

	values[0] = PointerGetDatum(subscription->name);
	values[1] = Int64GetDatum(position);
	values[2] = Int32GetDatum(partition);
	values[3] = PointerGetDatum(stream);
	(void) es_run(&park_behind, values, NULL);
}

/*
 * A letter was handed out again.
 */
void
es_letter_delivered(const EsSubscription *subscription, int64 position)
{
	Datum		values[2];

	values[0] = PointerGetDatum(subscription->name);
	values[1] = Int64GetDatum(position);
	(void) es_run(&mark_delivered, values, NULL);
}

/*
 * The letters of some partitions up to a position that were handed out again
 * are handled.
 */
void
es_letters_acknowledge(const EsSubscription *subscription, ArrayType *partitions,
					   int64 position)
{
	Datum		values[3];

	values[0] = PointerGetDatum(subscription->name);
	values[1] = PointerGetDatum(partitions);
	values[2] = Int64GetDatum(position);
	(void) es_run(&acknowledge, values, NULL);
}

/*
 * Find a letter that was handed out again.
 */
bool
es_letter_find(EsLetter *letter, const EsSubscription *subscription, int64 position)
{
	Datum		values[2];

	values[0] = PointerGetDatum(subscription->name);
	values[1] = Int64GetDatum(position);
	if (es_run(&find_letter, values, NULL) == 0)
		return false;
	read_letter(letter, 0);
	return true;
}

/*
 * The letters of a partition from a position on that were handed out again are
 * to be so once more.
 */
void
es_letters_take_back(const EsSubscription *subscription, int partition, int64 position)
{
	Datum		values[3];

	values[0] = PointerGetDatum(subscription->name);
	values[1] = Int32GetDatum(partition);
	values[2] = Int64GetDatum(position);
	(void) es_run(&take_back, values, NULL);
}
