/*-------------------------------------------------------------------------
 * ack.c
 *	  What a consumer says of the events it was given: es_ack(), es_nack(),
 *	  es_heartbeat() and es_leave().
 *
 * An acknowledgement counts only as long as the consumer holds the partitions,
 * for after that another one handles the same events.  It takes the locks of
 * the partitions, so an es_ack() in the transaction of what the consumer
 * writes in this database is committed with it or not at all, and makes it
 * exactly once.
 *
 * The consumer's row names the partitions in which it has events to
 * acknowledge: where one of them is no longer its own, part of what it
 * acknowledges is not its business any more, and that is an error.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "executor/executor.h"
#include "fanout/lease.h"
#include "fanout/letter.h"
#include "fanout/subscription.h"
#include "store/partition.h"
#include "store/scan.h"
#include "store/table.h"
#include "store/watermark.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"

PG_FUNCTION_INFO_V1(es_ack);
PG_FUNCTION_INFO_V1(es_nack);
PG_FUNCTION_INFO_V1(es_heartbeat);
PG_FUNCTION_INFO_V1(es_leave);

/* All the partitions of a consumer. */
#define ALL_PARTITIONS	(-1)

/* What a consumer holds, under lock. */
typedef struct Holding
{
	EsSubscription subscription;
	text	   *consumer;
	EsPartition *partitions;
	int			npartitions;
	int			nbusy;			/* in which it has events to acknowledge */
	int		   *busy;
} Holding;

static EsStatement select_busy = ES_SQL(
	"SELECT unacknowledged FROM es.subscription_consumer "
	"WHERE subscription = $1 AND consumer = $2 FOR UPDATE", 2, TEXTOID, TEXTOID);
static EsStatement save_busy = ES_SQL(
	"UPDATE es.subscription_consumer SET unacknowledged = $3 "
	"WHERE subscription = $1 AND consumer = $2 AND unacknowledged <> $3",
	3, TEXTOID, TEXTOID, INT4ARRAYOID);
static EsStatement save_position = ES_SQL(
	"UPDATE es.subscription_partition SET position = $3, attempts = 0, "
	"  batch = CASE WHEN handed_out > $3 THEN batch ELSE 0 END, "
	"  failing = CASE WHEN failing > $3 THEN failing END, "
	"  failures = CASE WHEN failing > $3 THEN failures ELSE 0 END, "
	"  error = CASE WHEN failing > $3 THEN error END "
	"WHERE subscription = $1 AND partition = $2",
	3, TEXTOID, INT4OID, INT8OID);
static EsStatement save_failure = ES_SQL(
	"UPDATE es.subscription_partition SET position = $3, delivered = $4, attempts = 0, "
	"  failing = nullif($5, 0), failures = $6, error = $7, "
	"  retry_at = clock_timestamp() + make_interval(secs => $8) "
	"WHERE subscription = $1 AND partition = $2",
	8, TEXTOID, INT4OID, INT8OID, INT8OID, INT8OID, INT4OID, TEXTOID, FLOAT8OID);
static EsStatement extend_leases = ES_SQL(
	"UPDATE es.subscription_partition SET lease_until = clock_timestamp() + make_interval(secs => $3) "
	"WHERE subscription = $1 AND consumer = $2 AND lease_until > clock_timestamp()",
	3, TEXTOID, TEXTOID, FLOAT8OID);
static EsStatement extend_consumer = ES_SQL(
	"UPDATE es.subscription_consumer SET active_until = clock_timestamp() + make_interval(secs => $3) "
	"WHERE subscription = $1 AND consumer = $2", 3, TEXTOID, TEXTOID, FLOAT8OID);
static EsStatement leave = ES_SQL(
	"WITH c AS (DELETE FROM es.subscription_consumer WHERE subscription = $1 AND consumer = $2) "
	"UPDATE es.subscription_partition SET consumer = NULL, lease_until = NULL, delivered = position "
	"WHERE subscription = $1 AND consumer = $2", 2, TEXTOID, TEXTOID);

static void
lease_lost(const Holding *h, int partition)
{
	ereport(ERROR,
			(errcode(ERRCODE_ES_LEASE_LOST),
			 errmsg("consumer \"%s\" of subscription \"%s\" has lost its lease of partition %d",
					text_to_cstring(h->consumer), text_to_cstring(h->subscription.name),
					partition),
			 errdetail("What it was given there is handed out again."),
			 errhint("Drop what was not acknowledged and call es_fetch(); ask for a longer lease, or call es_heartbeat() in time.")));
}

static EsPartition *
find_held(const Holding *h, int partition)
{
	for (int i = 0; i < h->npartitions; i++)
		if (h->partitions[i].number == partition)
			return &h->partitions[i];
	return NULL;
}

static void
check_lease(const Holding *h, int partition)
{
	EsPartition *p = find_held(h, partition);

	if (p == NULL || p->lease_until <= GetCurrentTimestamp())
		lease_lost(h, partition);
}

/*
 * Lock what the consumer holds, and learn where it has events to acknowledge.
 * Between es_spi_begin() and es_spi_end().
 */
static void
lock_holding(Holding *h)
{
	Datum		values[2];
	bool		isnull;
	Datum	   *busy;

	h->npartitions = es_lock_leases(&h->subscription, h->consumer, &h->partitions);
	values[0] = PointerGetDatum(h->subscription.name);
	values[1] = PointerGetDatum(h->consumer);
	if (es_run(&select_busy, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_ES_LEASE_LOST),
				 errmsg("consumer \"%s\" has no lease of subscription \"%s\"",
						text_to_cstring(h->consumer), text_to_cstring(h->subscription.name)),
				 errdetail("It has fetched nothing, or has left."),
				 errhint("Call es_fetch() first, with the same name.")));
	deconstruct_array(DatumGetArrayTypePCopy(es_spi_value(0, 1, &isnull)),
					  INT4OID, sizeof(int32), true, TYPALIGN_INT, &busy, NULL, &h->nbusy);
	h->busy = palloc(sizeof(int) * Max(h->nbusy, 1));
	for (int i = 0; i < h->nbusy; i++)
		h->busy[i] = DatumGetInt32(busy[i]);
}

static void
check_leases(const Holding *h)
{
	for (int i = 0; i < h->nbusy; i++)
		check_lease(h, h->busy[i]);
}

/*
 * Forget the partitions in which nothing is left to acknowledge.
 */
static void
save_holding(const Holding *h)
{
	Datum	   *busy = palloc(sizeof(Datum) * Max(h->nbusy, 1));
	int			n = 0;
	Datum		values[3];

	for (int i = 0; i < h->nbusy; i++)
	{
		EsPartition *p = find_held(h, h->busy[i]);

		if (p == NULL || es_partition_is_busy(p))
			busy[n++] = Int32GetDatum(h->busy[i]);
	}
	values[0] = PointerGetDatum(h->subscription.name);
	values[1] = PointerGetDatum(h->consumer);
	values[2] = PointerGetDatum(construct_array(busy, n, INT4OID, sizeof(int32),
												true, TYPALIGN_INT));
	(void) es_run(&save_busy, values, NULL);
}

/*
 * The stream of the subscription's event at a position, or NULL.
 */
static text *
stream_at(const EsSubscription *subscription, int64 position)
{
	Relation	rel = table_open(es_catalog()->event, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ScanKeyData key;
	text	   *stream = NULL;
	bool		isnull;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ, Int64GetDatum(position));
	if (es_index_find(rel, es_catalog()->event_key, &key, 1,
					  ForwardScanDirection, slot) &&
		(!subscription->filtered || es_filter_passes(&subscription->filter, slot)))
		stream = DatumGetTextPCopy(slot_getattr(slot, ES_EVENT_STREAM, &isnull));
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return stream;
}

/*
 * Where an event is of a partition that the consumer does not hold, it may
 * have held it when it was given the event.
 */
static void
check_holds(const Holding *h, int64 position)
{
	text	   *stream = stream_at(&h->subscription, position);
	int			partition;

	if (stream == NULL)
		return;
	partition = es_partition_of(stream, h->subscription.partitions);
	if (find_held(h, partition) == NULL)
		lease_lost(h, partition);
}

/*
 * Refuse a position beyond what the consumer was given; or was given once, but
 * it has fetched again or given it back since, perhaps under the same name in
 * another session.
 */
static void
check_fetched(const Holding *h, int64 position, int partition)
{
	int64		delivered = 0;
	int64		handed_out = 0;

	for (int i = 0; i < h->npartitions; i++)
	{
		EsPartition *p = &h->partitions[i];

		if (partition != ALL_PARTITIONS && p->number != partition)
			continue;
		delivered = Max(delivered, p->delivered);
		handed_out = Max(handed_out, p->handed_out);
	}
	if (position > delivered && position <= handed_out)
		ereport(ERROR,
				(errcode(ERRCODE_ES_LEASE_LOST),
				 errmsg("consumer \"%s\" of subscription \"%s\" does not hold position " INT64_FORMAT " any more",
						text_to_cstring(h->consumer), text_to_cstring(h->subscription.name),
						position),
				 errdetail("Its last es_fetch() gave it events up to position " INT64_FORMAT ".", delivered),
				 errhint("Drop what was not acknowledged and call es_fetch().")));
	if (position <= delivered)
		return;
	if (partition == ALL_PARTITIONS)
		check_holds(h, position);
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("position " INT64_FORMAT " was not fetched by consumer \"%s\"",
					position, text_to_cstring(h->consumer)),
			 errdetail("It was given events up to position " INT64_FORMAT ".", delivered),
			 errhint("Acknowledge positions that es_fetch() returned.")));
}

static void
acknowledge(Holding *h, int64 position, int partition)
{
	Datum	   *retrying = palloc(sizeof(Datum) * Max(h->npartitions, 1));
	int			nretrying = 0;

	for (int i = 0; i < h->npartitions; i++)
	{
		EsPartition *p = &h->partitions[i];
		Datum		values[3];

		if (partition != ALL_PARTITIONS && p->number != partition)
			continue;
		if (p->retrying)
			retrying[nretrying++] = Int32GetDatum(p->number);
		if (Min(position, p->delivered) <= p->position)
			continue;
		p->position = Min(position, p->delivered);
		values[0] = PointerGetDatum(h->subscription.name);
		values[1] = Int32GetDatum(p->number);
		values[2] = Int64GetDatum(p->position);
		(void) es_run(&save_position, values, NULL);
	}
	if (nretrying > 0)
		es_letters_acknowledge(&h->subscription,
							   construct_array(retrying, nretrying, INT4OID, sizeof(int32),
											   true, TYPALIGN_INT), position);
}

static int
partition_argument(FunctionCallInfo fcinfo, int arg, const EsSubscription *subscription)
{
	int			partition;

	if (PG_ARGISNULL(arg))
		return ALL_PARTITIONS;
	partition = PG_GETARG_INT32(arg);
	if (partition < 0 || partition >= subscription->partitions)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no partition %d",
						text_to_cstring(subscription->name), partition),
				 errdetail("Its partitions are 0 to %d.", subscription->partitions - 1)));
	return partition;
}

static void
read_names(FunctionCallInfo fcinfo, Holding *h)
{
	(void) es_database();
	es_subscription_load(&h->subscription, es_name_argument(fcinfo, 0, "subscription name"));
	h->consumer = es_name_argument(fcinfo, 1, "consumer name");
}

/*
 * es_ack(subscription, consumer, position, partition)
 *
 * The consumer has handled all it was given up to a position, in all its
 * partitions or, where it names one, in that.  To acknowledge again does
 * nothing.  Errors: ES005 where it does not hold a partition any more in which
 * it has events to acknowledge, or was given others since; 22023 beyond what
 * was handed out.
 */
Datum
es_ack(PG_FUNCTION_ARGS)
{
	Holding		h = {0};
	int64		position = es_position_argument(fcinfo, 2);
	int			partition;
	EsSpi		spi;

	read_names(fcinfo, &h);
	partition = partition_argument(fcinfo, 3, &h.subscription);
	es_spi_begin(&spi);
	lock_holding(&h);
	if (partition == ALL_PARTITIONS)
		check_leases(&h);
	else
		check_lease(&h, partition);
	check_fetched(&h, position, partition);
	acknowledge(&h, position, partition);
	/* What was retried up to there is acknowledged, perhaps not all of it. */
	h.npartitions = es_lock_leases(&h.subscription, h.consumer, &h.partitions);
	save_holding(&h);
	es_spi_end(&spi);
	PG_RETURN_VOID();
}

static void
write_failure(const Holding *h, const EsPartition *p, const char *reason, int64 delay_ms)
{
	Datum		values[8];
	char		nulls[] = "        ";

	values[0] = PointerGetDatum(h->subscription.name);
	values[1] = Int32GetDatum(p->number);
	values[2] = Int64GetDatum(p->position);
	values[3] = Int64GetDatum(p->delivered);
	values[4] = Int64GetDatum(p->failing);
	values[5] = Int32GetDatum(p->failures);
	values[6] = reason ? CStringGetTextDatum(reason) : (Datum) 0;
	nulls[6] = reason ? ' ' : 'n';
	values[7] = Float8GetDatum(delay_ms / 1000.0);
	(void) es_run(&save_failure, values, nulls);
}

/*
 * An event that was parked and is retried failed again.
 */
static void
give_back_letter(Holding *h, EsPartition *p, EsLetter *letter, const char *reason)
{
	es_letters_take_back(&h->subscription, p->number, letter->position);
	if (letter->deliveries >= h->subscription.max_deliveries)
		es_letter_park(NULL, &h->subscription, *letter,
					   reason ? reason : "given back");
	p->delivered = p->position;
	p->retrying = false;
}

/*
 * An event failed: count that, and park it where it was too often.
 */
static void
give_back_event(Holding *h, EsPartition *p, int64 position, text *stream, const char *reason)
{
	EsLetter	letter;

	if (position <= p->position || position > p->delivered)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("position " INT64_FORMAT " does not wait to be acknowledged by consumer \"%s\"",
						position, text_to_cstring(h->consumer)),
				 errdetail("In partition %d these are the events behind position " INT64_FORMAT " up to " INT64_FORMAT ".",
						   p->number, p->position, p->delivered)));
	p->failures = p->failing == position ? p->failures + 1 : 1;
	p->failing = position;
	p->delivered = position - 1;
	if (p->failures < h->subscription.max_deliveries)
		return;
	letter.partition = p->number;
	letter.position = position;
	letter.stream = stream;
	letter.deliveries = p->failures;
	es_letter_park(NULL, &h->subscription, letter, reason ? reason : "given back");
	p->failing = p->failures = 0;
	/* With nothing before it, it is done with. */
	if (p->delivered == p->position)
		p->position = p->delivered = position;
}

/*
 * es_nack(subscription, consumer, position, reason, delay)
 *
 * The consumer could not handle the event at a position, which it was given.
 * It comes back after a delay, 0 to a day, and with it what was given out
 * behind it in its partition, so that the order holds; what is before it is
 * still to be acknowledged.  After max_deliveries the event is parked.
 * Errors: ES005 where the consumer does not hold the partition any more,
 * 22023 where it was not given the event.
 */
Datum
es_nack(PG_FUNCTION_ARGS)
{
	Holding		h = {0};
	int64		position = es_position_argument(fcinfo, 2);
	char	   *reason = PG_ARGISNULL(3) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(3));
	int64		delay_ms = es_interval_argument(fcinfo, 4, "delay", 0, ES_DAY_MS);
	text	   *stream;
	EsPartition *p;
	EsLetter	letter;
	EsSpi		spi;

	read_names(fcinfo, &h);
	stream = stream_at(&h.subscription, position);
	if (stream == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("subscription \"%s\" has no event at position " INT64_FORMAT,
						text_to_cstring(h.subscription.name), position),
				 errhint("Give back positions that es_fetch() returned.")));
	es_spi_begin(&spi);
	lock_holding(&h);
	check_lease(&h, es_partition_of(stream, h.subscription.partitions));
	p = find_held(&h, es_partition_of(stream, h.subscription.partitions));
	if (p->retrying && es_letter_find(&letter, &h.subscription, position))
		give_back_letter(&h, p, &letter, reason);
	else
		give_back_event(&h, p, position, stream, reason);
	write_failure(&h, p, reason, delay_ms);
	save_holding(&h);
	es_spi_end(&spi);
	es_wake_consumers_at_commit();
	PG_RETURN_VOID();
}

/*
 * es_heartbeat(subscription, consumer, lease)
 *
 * Extend the leases of a consumer that takes its time, and return how many
 * partitions it holds.  ES005 where it has lost one with events to
 * acknowledge.
 */
Datum
es_heartbeat(PG_FUNCTION_ARGS)
{
	Holding		h = {0};
	int64		lease_ms = es_interval_argument(fcinfo, 2, "lease", ES_MIN_LEASE_MS, ES_DAY_MS);
	Datum		values[3];
	int			n;
	EsSpi		spi;

	read_names(fcinfo, &h);
	es_spi_begin(&spi);
	lock_holding(&h);
	check_leases(&h);
	values[0] = PointerGetDatum(h.subscription.name);
	values[1] = PointerGetDatum(h.consumer);
	values[2] = Float8GetDatum(lease_ms / 1000.0);
	n = (int) es_run(&extend_leases, values, NULL);
	(void) es_run(&extend_consumer, values, NULL);
	es_spi_end(&spi);
	PG_RETURN_INT32(n);
}

/*
 * es_leave(subscription, consumer): the consumer stops.  Others may have its
 * partitions at once, and are given what it has not acknowledged.
 */
Datum
es_leave(PG_FUNCTION_ARGS)
{
	Holding		h = {0};
	Datum		values[2];
	EsSpi		spi;

	read_names(fcinfo, &h);
	es_spi_begin(&spi);
	values[0] = PointerGetDatum(h.subscription.name);
	values[1] = PointerGetDatum(h.consumer);
	(void) es_run(&leave, values, NULL);
	es_spi_end(&spi);
	es_wake_consumers_at_commit();
	PG_RETURN_VOID();
}
