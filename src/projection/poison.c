/*-------------------------------------------------------------------------
 * poison.c
 *	  What becomes of events that a projection cannot apply.
 *
 * A batch that fails is halved until the one event that fails is alone in it
 * (see batch.c).  Then, by the projection's on_error:
 *
 *		stop	the checkpoint stays in front of it; it is tried again with
 *				growing intervals, and at once by es_resume()
 *		skip	it becomes a dead letter and the checkpoint moves on; later
 *				events of its stream are parked behind it, since the read model
 *				must not see a stream out of order
 *
 * Errors that come from the circumstances and not from the events are told by
 * their SQLSTATE, and the same batch is tried again: at once after a deadlock
 * or a serialization failure, which partitions can inflict on each other, and
 * with growing intervals after the rest.
 *
 * es_retry() and es_discard() work in the session that calls them, with the
 * checkpoints locked.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "projection/apply.h"
#include "projection/define.h"
#include "projection/poison.h"
#include "projection/run.h"
#include "store/watermark.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/elog.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(es_retry);
PG_FUNCTION_INFO_V1(es_discard);

/* Waits between attempts of a projection that stopped: 1 s, 2 s, 4 s ... */
#define FIRST_RETRY_MS	1000
#define LAST_RETRY_MS	60000

/* Deadlocks and serialization failures in a row before that counts as stopped. */
#define MAX_COLLISIONS	10

static EsStatement record_error = ES_SQL(
	"UPDATE es.checkpoint SET retries = $4, error_position = $5, "
	"  error_at = clock_timestamp(), error_sqlstate = $6, error = $7 "
	"WHERE projection = $1 AND rebuild = $2 AND partition = $3",
	7, TEXTOID, INT4OID, INT4OID, INT4OID, INT8OID, TEXTOID, TEXTOID);
static EsStatement log_error = ES_SQL(
	"INSERT INTO es.projection_error (projection, rebuild, partition, position, sqlstate, error, context) "
	"VALUES ($1, $2, $3, $4, $5, $6, $7)",
	7, TEXTOID, INT4OID, INT4OID, INT8OID, TEXTOID, TEXTOID, TEXTOID);
static EsStatement prune_errors = ES_SQL(
	"DELETE FROM es.projection_error WHERE projection = $1 AND at < ("
	"  SELECT at FROM es.projection_error WHERE projection = $1 ORDER BY at DESC OFFSET 99 LIMIT 1)",
	1, TEXTOID);
static EsStatement bury_event = ES_SQL(
	"INSERT INTO es.dead_letter (projection, rebuild, partition, position, stream, version, type, "
	"  status, attempts, tried_at, sqlstate, error) "
	"SELECT $1, $2, $3, e.position, e.stream, e.version, e.type, 'failed', 1, clock_timestamp(), $5, $6 "
	"FROM es.event e WHERE e.position = $4",
	6, TEXTOID, INT4OID, INT4OID, INT8OID, TEXTOID, TEXTOID);
static EsStatement pass_checkpoint = ES_SQL(
	"UPDATE es.checkpoint SET position = $4, revision = revision + 1, retries = 0, "
	"  error_position = NULL, error_at = NULL, error_sqlstate = NULL, error = NULL "
	"WHERE projection = $1 AND rebuild = $2 AND partition = $3",
	4, TEXTOID, INT4OID, INT4OID, INT8OID);
static EsStatement park_events = ES_SQL(
	"INSERT INTO es.dead_letter (projection, rebuild, partition, position, stream, version, type, status) "
	"SELECT $1, $2, $3, e.position, e.stream, e.version, e.type, 'parked' "
	"FROM es.event e WHERE e.position > $4 AND e.position <= $5 AND e.stream = ANY ($6) "
	"  AND ($7 IS NULL OR e.category = ANY ($7)) AND ($8 IS NULL OR e.type = ANY ($8)) "
	"  AND ($9 <= 1 OR es.stream_partition(e.stream, $9) = $3) "
	"  AND NOT EXISTS (SELECT FROM es.dead_letter d WHERE d.projection = $1 "
	"    AND d.rebuild = 0 AND d.position = e.position AND d.status = 'discarded')",
	9, TEXTOID, INT4OID, INT4OID, INT8OID, INT8OID, TEXTARRAYOID, TEXTARRAYOID,
	TEXTARRAYOID, INT4OID);
static EsStatement select_letter = ES_SQL(
	"SELECT stream, status FROM es.dead_letter "
	"WHERE projection = $1 AND rebuild = 0 AND position = $2 FOR UPDATE",
	2, TEXTOID, INT8OID);
static EsStatement select_letters = ES_SQL(
	"SELECT position, status = 'failed' FROM es.dead_letter "
	"WHERE projection = $1 AND rebuild = 0 AND stream = $2 AND status <> 'discarded' ORDER BY position",
	2, TEXTOID, TEXTOID);
static EsStatement select_discarded = ES_SQL(
	"SELECT array_agg(position ORDER BY position) FROM es.dead_letter "
	"WHERE projection = $1 AND rebuild = 0 AND stream = $2 AND status = 'discarded'",
	2, TEXTOID, TEXTOID);
static EsStatement delete_letters = ES_SQL(
	"DELETE FROM es.dead_letter WHERE projection = $1 AND rebuild = 0 AND stream = $2 "
	"  AND position <= $3 AND status <> 'discarded'",
	3, TEXTOID, TEXTOID, INT8OID);
static EsStatement fail_letter = ES_SQL(
	"UPDATE es.dead_letter SET status = 'failed', attempts = attempts + 1, "
	"  tried_at = clock_timestamp(), sqlstate = $3, error = $4 "
	"WHERE projection = $1 AND rebuild = 0 AND position = $2",
	4, TEXTOID, INT8OID, TEXTOID, TEXTOID);
static EsStatement discard_letter = ES_SQL(
	"UPDATE es.dead_letter SET status = 'discarded', discarded_at = clock_timestamp(), "
	"  discarded_by = session_user, reason = $3 "
	"WHERE projection = $1 AND rebuild = 0 AND position = $2",
	3, TEXTOID, INT8OID, TEXTOID);
static EsStatement discard_stopper = ES_SQL(
	"INSERT INTO es.dead_letter (projection, partition, position, stream, version, type, status, "
	"  attempts, tried_at, sqlstate, error, discarded_at, discarded_by, reason) "
	"SELECT c.projection, c.partition, e.position, e.stream, e.version, e.type, 'discarded', "
	"  c.retries, c.error_at, c.error_sqlstate, c.error, clock_timestamp(), session_user, $3 "
	"FROM es.checkpoint c JOIN es.event e ON e.position = c.error_position "
	"WHERE c.projection = $1 AND c.rebuild = 0 AND c.error_position = $2 "
	"RETURNING partition",
	3, TEXTOID, INT8OID, TEXTOID);

/*
 * When to try again after a number of failures in a row.
 */
TimestampTz
es_retry_time(TimestampTz failed_at, int retries)
{
	int			ms = retries > 6 ? LAST_RETRY_MS : FIRST_RETRY_MS << Max(retries - 1, 0);

	return TimestampTzPlusMilliseconds(failed_at, Min(ms, LAST_RETRY_MS));
}

static bool
is_collision(int sqlerrcode)
{
	return ERRCODE_TO_CATEGORY(sqlerrcode) == ERRCODE_TRANSACTION_ROLLBACK;
}

/*
 * Whether an error comes from the circumstances and not from the events, so
 * that the same batch may pass later.
 */
bool
es_error_is_transient(int sqlerrcode)
{
	switch (sqlerrcode)
	{
		case ERRCODE_LOCK_NOT_AVAILABLE:
		case ERRCODE_OBJECT_IN_USE:
		case ERRCODE_READ_ONLY_SQL_TRANSACTION:
		case ERRCODE_FDW_UNABLE_TO_ESTABLISH_CONNECTION:
			return true;
		default:
			break;
	}
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
		case ERRCODE_CONNECTION_EXCEPTION:
			return true;
		default:
			return false;
	}
}

static char *
error_text(const ErrorData *error)
{
	return error->detail
		? psprintf("%s (%s)", error->message, error->detail) : error->message;
}

/*
 * The key of a checkpoint, as the first three parameters of our statements.
 */
static void
key_values(const EsProjection *p, Datum *values)
{
	values[0] = CStringGetTextDatum(p->name);
	values[1] = Int32GetDatum(p->rebuild);
	values[2] = Int32GetDatum(p->partition);
}

/*
 * Keep an error in the history of the projection.
 */
static void
remember(EsProjection *p, int64 position, ErrorData *error)
{
	Datum		values[7];
	char		nulls[] = "       ";

	key_values(p, values);
	values[3] = Int64GetDatum(position);
	values[4] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[5] = CStringGetTextDatum(error_text(error));
	values[6] = error->context ? CStringGetTextDatum(error->context) : (Datum) 0;
	if (error->context == NULL)
		nulls[6] = 'n';
	(void) es_run(&log_error, values, nulls);
	(void) es_run(&prune_errors, values, NULL);
}

/*
 * Stop in front of an event: write the error down and wait.
 */
static void
stop(EsProjection *p, int64 position, ErrorData *error)
{
	Datum		values[7];
	EsSpi		spi;

	p->retries++;
	p->retry_at = es_retry_time(GetCurrentTimestamp(), p->retries);
	key_values(p, values);
	values[3] = Int32GetDatum(p->retries);
	values[4] = Int64GetDatum(position);
	values[5] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[6] = CStringGetTextDatum(error_text(error));
	es_spi_begin(&spi);
	(void) es_run(&record_error, values, NULL);
	if (p->retries == 1)
		remember(p, position, error);
	es_spi_end(&spi);
	if (p->retries == 1)
		ereport(LOG,
				(p->rebuild > 0
				 ? errmsg("the rebuild of projection \"%s\" stopped at position " INT64_FORMAT ": %s",
						  p->name, position, error->message)
				 : errmsg("projection \"%s\" stopped at position " INT64_FORMAT ": %s",
						  p->name, position, error->message),
				 errhint("It is tried again with growing intervals; see es_projections and es_stat_rebuild.")));
}

/*
 * Make a dead letter of an event and move the checkpoint behind it.
 */
static void
bury(EsProjection *p, int64 position, ErrorData *error)
{
	Datum		values[6];
	EsSpi		spi;

	key_values(p, values);
	values[3] = Int64GetDatum(position);
	values[4] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[5] = CStringGetTextDatum(error_text(error));
	es_spi_begin(&spi);
	(void) es_run(&bury_event, values, NULL);
	(void) es_run(&pass_checkpoint, values, NULL);
	remember(p, position, error);
	es_spi_end(&spi);
	es_projections_changed();
	ereport(LOG,
			(errmsg("projection \"%s\" could not apply the event at position " INT64_FORMAT ": %s",
					p->name, position, error->message),
			 errhint("It is in es.dead_letter, and later events of its stream wait behind it; see es_retry() and es_discard().")));
}

/*
 * The batch failed and its transaction is aborted.  Either narrow it down or,
 * where it is down to one position or the error has to do with none, see to
 * that.  Needs a transaction.
 */
void
es_projection_failed(EsProjection *p, ErrorData *error)
{
	bool		transient = es_error_is_transient(error->sqlerrcode);
	int64		position = p->position;

	p->whole = p->whole || error->sqlerrcode == ERRCODE_ES_CANNOT_REBUILD;

	if (is_collision(error->sqlerrcode) && p->collisions++ < MAX_COLLISIONS)
	{
		p->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), p->collisions);
		return;
	}
	if (!transient && !p->whole && p->attempt_to - p->attempt_after > 1)
	{
		p->suspect_to = p->attempt_to;
		return;
	}
	/* It may have been altered, or served by another, in the meantime. */
	if (es_projection_take(p) != ES_APPLIED || p->position != position)
		return;
	if (p->whole)
		stop(p, p->position, error);
	else if (p->skips_errors && !transient)
		bury(p, p->attempt_to, error);
	else
		stop(p, p->attempt_after + 1, error);
}

static Datum
text_array(text **texts, int n, char *isnull)
{
	Datum	   *elements = palloc(sizeof(Datum) * Max(n, 1));

	if (texts == NULL)
	{
		*isnull = 'n';
		return (Datum) 0;
	}
	for (int i = 0; i < n; i++)
		elements[i] = PointerGetDatum(texts[i]);
	return PointerGetDatum(construct_array(elements, n, TEXTOID, -1, false,
										   TYPALIGN_INT));
}

/*
 * Park the events of a batch that belong to streams with a dead letter.
 */
void
es_park_events(EsProjection *p, const EsBatch *batch)
{
	const EsFilter *filter = &p->filter;
	Datum		values[9];
	char		nulls[] = "         ";
	EsSpi		spi;

	key_values(p, values);
	values[3] = Int64GetDatum(batch->after);
	values[4] = Int64GetDatum(batch->to);
	values[5] = text_array(filter->parked, filter->nparked, &nulls[5]);
	values[6] = text_array(filter->categories, filter->ncategories, &nulls[6]);
	values[7] = text_array(filter->types, filter->ntypes, &nulls[7]);
	values[8] = Int32GetDatum(p->partitions);
	es_spi_begin(&spi);
	(void) es_run(&park_events, values, nulls);
	es_spi_end(&spi);
}

/*
 * The positions of the events of a stream that wait, in order, how many, and
 * whether the first has failed.
 */
static int64 *
waiting_letters(Datum *key, int *n, bool *failed)
{
	MemoryContext context = CurrentMemoryContext;
	int64	   *positions;
	bool		isnull;
	EsSpi		spi;

	es_spi_begin(&spi);
	*n = (int) es_run(&select_letters, key, NULL);
	*failed = *n > 0 && DatumGetBool(es_spi_value(0, 2, &isnull));
	positions = MemoryContextAlloc(context, sizeof(int64) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		positions[i] = DatumGetInt64(es_spi_value(i, 1, &isnull));
	es_spi_end(&spi);
	return positions;
}

/*
 * The filter for the waiting events of a stream: its own, less what was given
 * up.
 */
static EsFilter
filter_for_stream(EsProjection *p, Datum *key)
{
	EsFilter	filter = p->filter;
	MemoryContext context = CurrentMemoryContext;
	Datum		value;
	bool		isnull;
	EsSpi		spi;

	filter.partitions = 0;
	filter.parked = NULL;
	filter.nparked = 0;
	filter.stream = DatumGetTextPP(key[1]);

	es_spi_begin(&spi);
	(void) es_run(&select_discarded, key, NULL);
	value = es_spi_value(0, 1, &isnull);
	if (!isnull)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		ArrayType  *discarded = DatumGetArrayTypePCopy(value);

		MemoryContextSwitchTo(old);
		filter.skipped = (int64 *) ARR_DATA_PTR(discarded);
		filter.nskipped = ArrayGetNItems(ARR_NDIM(discarded), ARR_DIMS(discarded));
	}
	es_spi_end(&spi);
	return filter;
}

static void
run_with(EsStatement *statement, Datum first, Datum second, Datum third,
		 Datum fourth)
{
	Datum		values[4];
	EsSpi		spi;

	values[0] = first;
	values[1] = second;
	values[2] = third;
	values[3] = fourth;
	es_spi_begin(&spi);
	(void) es_run(statement, values, NULL);
	es_spi_end(&spi);
}

/*
 * Apply the waiting events of a stream, in order, until one fails: all at
 * once, or fewer where that fails.  Returns how many were applied.  The first
 * may be one that failed before only where that is asked for.
 */
static int64
replay_stream(EsProjection *p, Datum stream, bool retry)
{
	Datum		key[2] = {CStringGetTextDatum(p->name), stream};
	int			n;
	bool		failed;
	int64	   *positions = waiting_letters(key, &n, &failed);
	EsFilter	filter = filter_for_stream(p, key);
	int			done = 0;
	int			step = n;

	if (failed && !retry)
		return 0;
	while (done < n)
	{
		ErrorData  *error;

		step = Min(step, n - done);
		CHECK_FOR_INTERRUPTS();
		if (es_projection_try(p, &filter, positions[done] - 1,
							  positions[done + step - 1], &error))
		{
			done += step;
			run_with(&delete_letters, key[0], key[1],
					 Int64GetDatum(positions[done - 1]), (Datum) 0);
			step *= 2;
		}
		else if (step > 1)
			step /= 2;
		else
		{
			run_with(&fail_letter, key[0], Int64GetDatum(positions[done]),
					 CStringGetTextDatum(unpack_sql_state(error->sqlerrcode)),
					 CStringGetTextDatum(error_text(error)));
			ereport(WARNING,
					(errcode(error->sqlerrcode),
					 errmsg("projection \"%s\" could not apply the event at position " INT64_FORMAT ": %s",
							p->name, positions[done], error->message)));
			break;
		}
	}
	return done;
}

/*
 * The dead letter at a position: its stream, or 0 where there is none that
 * waits.  An error where it was given up.
 */
static Datum
stream_of_letter(Datum name, int64 position)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[2] = {name, Int64GetDatum(position)};
	Datum		stream = (Datum) 0;
	EsSpi		spi;

	es_spi_begin(&spi);
	if (es_run(&select_letter, values, NULL) == 1)
	{
		MemoryContext old;

		if (strcmp(es_spi_text(0, 2), "discarded") == 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the event at position " INT64_FORMAT " was discarded from projection \"%s\"",
							position, TextDatumGetCString(name)),
					 errhint("es.dead_letter says by whom and why.")));
		old = MemoryContextSwitchTo(context);
		stream = CStringGetTextDatum(es_spi_text(0, 1));
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);
	return stream;
}

static void
no_such_letter(Datum name, int64 position)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("projection \"%s\" has no dead letter at position " INT64_FORMAT,
					TextDatumGetCString(name), position),
			 errhint("es.dead_letter has those that failed, and es_projections where a projection stopped.")));
}

/*
 * The partition that stopped at a position, or NULL.
 */
static EsProjection *
partition_stopped_at(List *partitions, int64 position)
{
	ListCell   *cell;

	foreach(cell, partitions)
	{
		EsProjection *p = (EsProjection *) lfirst(cell);

		if (p->retries > 0 && p->error_position == position)
			return p;
	}
	return NULL;
}

/*
 * es_retry(projection, position)
 *
 * Apply a dead letter and what is parked behind it in its stream, in order, as
 * the projection's owner, until one fails.  Returns how many were applied; one
 * that fails is a warning, and counts as another attempt.  Where the
 * projection stopped at the position, it is as es_resume().  Errors: 42704
 * where there is no such dead letter, 55000 for one that was discarded, 42501
 * for those who are not the owner, and errors of the circumstances.
 */
Datum
es_retry(PG_FUNCTION_ARGS)
{
	Datum		name = PG_GETARG_DATUM(0);
	int64		position = PG_GETARG_INT64(1);
	List	   *partitions = es_projection_open(name, "es_retry()");
	Datum		stream = stream_of_letter(name, position);
	int64		applied = 0;

	if (stream != (Datum) 0)
		applied = replay_stream((EsProjection *) linitial(partitions), stream, true);
	else if (partition_stopped_at(partitions, position) != NULL)
		es_projection_forget_errors(name);
	else
		no_such_letter(name, position);
	es_projection_revise(name);
	PG_RETURN_INT64(applied);
}

/*
 * es_discard(projection, position, reason)
 *
 * Give up an event: a dead letter, or the one that the projection stopped at.
 * Who, when and why stay in es.dead_letter; a rebuild leaves the event out,
 * too.  What is parked behind it is applied as by es_retry(), and how many
 * were is returned.  Errors: those of es_retry(), and 22023 without a reason.
 */
Datum
es_discard(PG_FUNCTION_ARGS)
{
	Datum		name = PG_GETARG_DATUM(0);
	int64		position = PG_GETARG_INT64(1);
	Datum		reason = PG_GETARG_DATUM(2);
	List	   *partitions;
	EsProjection *stopped;
	Datum		stream;
	int64		applied = 0;

	if (VARSIZE_ANY_EXHDR(DatumGetPointer(reason)) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("an event is discarded for a reason"),
				 errhint("Say in a few words why it need not be applied.")));
	partitions = es_projection_open(name, "es_discard()");
	stream = stream_of_letter(name, position);
	stopped = partition_stopped_at(partitions, position);
	if (stream != (Datum) 0)
	{
		run_with(&discard_letter, name, Int64GetDatum(position), reason, (Datum) 0);
		applied = replay_stream((EsProjection *) linitial(partitions), stream, false);
	}
	else if (stopped != NULL)
	{
		run_with(&discard_stopper, name, Int64GetDatum(position), reason, (Datum) 0);
		run_with(&pass_checkpoint, name, Int32GetDatum(0),
				 Int32GetDatum(stopped->partition), Int64GetDatum(position));
	}
	else
		no_such_letter(name, position);
	es_projection_revise(name);
	PG_RETURN_INT64(applied);
}
