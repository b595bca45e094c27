/*-------------------------------------------------------------------------
 * apply.c
 *	  Applying a batch of events to the read models of a projection.
 *
 * Runs inside a transaction that the worker begins and ends.  The order is
 * what makes it exact:
 *
 *		lock the checkpoint row		nobody else applies, drops or resumes it
 *		compute the settled position
 *		take a snapshot				younger than the settled position
 *		run the query				over (checkpoint, settled], as the owner
 *		move the checkpoint			in the same transaction
 *
 * The isolation level is READ COMMITTED (the worker sees to it), so every
 * statement of the query takes a snapshot of its own, each younger than the
 * settled position.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "executor/spi.h"
#include "guc.h"
#include "miscadmin.h"
#include "projection/apply.h"
#include "projection/batch.h"
#include "store/watermark.h"
#include "tcop/dest.h"
#include "utils/builtins.h"
#include "utils/elog.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"

/* Waits between attempts of a projection that stopped: 1 s, 2 s, 4 s ... */
#define FIRST_RETRY_MS	1000
#define LAST_RETRY_MS	60000

static EsStatement lock_checkpoint = ES_SQL(
	"SELECT position FROM es.checkpoint WHERE projection = $1 FOR UPDATE",
	1, TEXTOID);
static EsStatement move_checkpoint = ES_SQL(
	"UPDATE es.checkpoint SET position = $2, events_applied = events_applied + $3, "
	"  batches = batches + ($3 > 0)::int, "
	"  applied_at = CASE WHEN $3 > 0 THEN clock_timestamp() ELSE applied_at END, "
	"  retries = 0, error_position = NULL, error_at = NULL, error_sqlstate = NULL, error = NULL "
	"WHERE projection = $1",
	3, TEXTOID, INT8OID, INT8OID);
static EsStatement record_error = ES_SQL(
	"UPDATE es.checkpoint SET retries = $2, error_position = $3, "
	"  error_at = clock_timestamp(), error_sqlstate = $4, error = $5 "
	"WHERE projection = $1",
	5, TEXTOID, INT4OID, INT8OID, TEXTOID, TEXTOID);

void
es_projection_missing(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("projection \"%s\" does not exist", name),
			 errhint("See es_projections for what there is.")));
}

/*
 * Lock the checkpoint row and learn the position; false where it is gone.
 */
static bool
take_checkpoint(EsProjection *p)
{
	Datum		key = CStringGetTextDatum(p->name);
	bool		found;
	bool		isnull;
	EsSpi		spi;

	es_spi_begin(&spi);
	found = es_run(&lock_checkpoint, &key, NULL) == 1;
	if (found)
		p->position = DatumGetInt64(es_spi_value(0, 1, &isnull));
	es_spi_end(&spi);
	return found;
}

static void
put_checkpoint(EsProjection *p, int64 position, int64 events)
{
	Datum		values[3];
	EsSpi		spi;

	values[0] = CStringGetTextDatum(p->name);
	values[1] = Int64GetDatum(position);
	values[2] = Int64GetDatum(events);
	es_spi_begin(&spi);
	(void) es_run(&move_checkpoint, values, NULL);
	es_spi_end(&spi);
}

void
es_projection_forget_plan(EsProjection *p)
{
	if (p->plan)
		SPI_freeplan(p->plan);
	p->plan = NULL;
}

/*
 * Plan the query, and plan it again when the batch is of another order of
 * magnitude: the planner looks at the range, and a plan for ten events is not
 * one for ten thousand.
 */
static void
plan_query(EsProjection *p, const EsBatch *batch)
{
	int			magnitude = 0;

	for (int64 n = batch->to - batch->after; n > 0; n /= 10)
		magnitude++;
	if (p->plan && p->plan_magnitude == magnitude)
		return;

	es_projection_forget_plan(p);
	p->plan = SPI_prepare(p->query, 0, NULL);
	if (p->plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	if (SPI_keepplan(p->plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	p->plan_magnitude = magnitude;
}

/*
 * Run the projection's query over a batch, with the rights of this session's
 * user and the projection's search_path.
 */
static void
run_query(EsProjection *p, const EsBatch *batch)
{
	SPIExecuteOptions options = {0};

	(void) set_config_option("search_path", p->search_path,
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	es_batch_set(p->filtered ? &p->filter : NULL, batch->after, batch->to);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	plan_query(p, batch);
	options.dest = None_Receiver;
	if (SPI_execute_plan_extended(p->plan, &options) < 0)
		elog(ERROR, "SPI_execute_plan_extended failed");
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	es_batch_set(NULL, 0, 0);
}

/*
 * Apply the next batch.  The caller has begun a READ COMMITTED transaction and
 * commits it, or aborts it on error and calls es_projection_failed().
 */
EsApplied
es_projection_apply(EsProjection *p)
{
	int64		settled;
	int64		events = 0;
	EsBatch		batch;

	if (!take_checkpoint(p))
		return ES_GONE;
	settled = es_settled_position();
	batch = es_batch_next(p, settled);
	if (batch.to <= p->position)
		return ES_CAUGHT_UP;

	p->attempt_after = batch.after;
	p->attempt_to = batch.to;
	if (!batch.empty)
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		events = es_batch_count(p, &batch);
		if (events > 0)
			run_query(p, &batch);
		PopActiveSnapshot();
	}
	put_checkpoint(p, batch.to, events);
	return ES_APPLIED;
}

/*
 * When to try again after a number of failures in a row.
 */
TimestampTz
es_retry_time(TimestampTz failed_at, int retries)
{
	int			ms = retries > 6 ? LAST_RETRY_MS : FIRST_RETRY_MS << Max(retries - 1, 0);

	return TimestampTzPlusMilliseconds(failed_at, Min(ms, LAST_RETRY_MS));
}

/*
 * The batch is committed.
 */
void
es_projection_applied(EsProjection *p)
{
	p->position = p->attempt_to;
	if (p->position >= p->suspect_to)
		p->suspect_to = 0;
	if (p->retries > 0)
		ereport(LOG,
				(errmsg("projection \"%s\" goes on from position " INT64_FORMAT,
						p->name, p->position)));
	p->retries = 0;
	p->retry_at = 0;
}

/*
 * Whether an error comes from the circumstances and not from the events, so
 * that the same batch may pass later.
 */
static bool
is_transient(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE:
		case ERRCODE_OPERATOR_INTERVENTION:
		case ERRCODE_SYSTEM_ERROR:
			return true;
		default:
			return sqlerrcode == ERRCODE_READ_ONLY_SQL_TRANSACTION;
	}
}

static void
write_error(EsProjection *p, int64 position, ErrorData *error)
{
	Datum		values[5];
	EsSpi		spi;

	values[0] = CStringGetTextDatum(p->name);
	values[1] = Int32GetDatum(p->retries);
	values[2] = Int64GetDatum(position);
	values[3] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[4] = CStringGetTextDatum(error->detail
									? psprintf("%s (%s)", error->message, error->detail)
									: error->message);
	es_spi_begin(&spi);
	(void) es_run(&record_error, values, NULL);
	es_spi_end(&spi);
}

/*
 * The batch failed and its transaction is aborted.  Either narrow it down, or,
 * where it is down to one position or the error has to do with none, record
 * the error and wait before the next attempt.  Needs a transaction.
 */
void
es_projection_failed(EsProjection *p, ErrorData *error)
{
	bool		transient = is_transient(error->sqlerrcode);

	es_batch_set(NULL, 0, 0);
	if (!transient && p->attempt_to - p->attempt_after > 1)
	{
		p->suspect_to = p->attempt_to;
		return;
	}
	p->retries++;
	p->retry_at = es_retry_time(GetCurrentTimestamp(), p->retries);
	write_error(p, p->attempt_after + 1, error);
	if (p->retries == 1)
		ereport(LOG,
				(errmsg("projection \"%s\" stopped at position " INT64_FORMAT ": %s",
						p->name, p->attempt_after + 1, error->message),
				 errhint("It is tried again with growing intervals; see es_projections.")));
}
