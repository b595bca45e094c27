/*-------------------------------------------------------------------------
 * wait.c
 *	  es_wait(): reading one's own writes from a read model.
 *
 * The checkpoint is committed with the read model, so a snapshot that sees the
 * checkpoint sees the rows.  Projectors broadcast on a condition variable after
 * each commit, and do not group events while anybody waits.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "projection/define.h"
#include "storage/ipc.h"
#include "store/wakeup.h"
#include "store/watermark.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(es_wait);
PG_FUNCTION_INFO_V1(es_wait_all);

/* On a standby, look this often. */
#define STANDBY_LOOK_MS		10

/* Progress of one projection, or, without a name, of all of them. */
static EsStatement select_progress = ES_SQL(
	"SELECT p.name, p.mode = 'sync', min(c.position), "
	"  (array_agg(c.error ORDER BY c.position) FILTER (WHERE c.error IS NOT NULL AND c.position < $2))[1], "
	"  (array_agg(c.error_position ORDER BY c.position) FILTER (WHERE c.error IS NOT NULL AND c.position < $2))[1], "
	"  (SELECT d.error FROM es.dead_letter d WHERE d.projection = p.name AND d.rebuild = 0 "
	"    AND d.position = $2 AND d.status <> 'discarded'), "
	"  EXISTS (SELECT FROM es.dead_letter d WHERE d.projection = p.name AND d.rebuild = 0 "
	"    AND d.position = $2 AND d.status <> 'discarded') "
	"FROM es.projection p JOIN es.checkpoint c ON c.projection = p.name AND c.rebuild = 0 "
	"WHERE $1 IS NULL OR p.name = $1 GROUP BY p.name",
	2, TEXTOID, INT8OID);

static void
report_stopped(const char *name, int64 position, const char *error)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("projection \"%s\" has stopped at position " INT64_FORMAT,
					name, position),
			 errdetail("%s", error),
			 errhint("Mend what the error names and call es_resume().")));
}

static void
report_dead(const char *name, int64 position, const char *error)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("projection \"%s\" could not apply the event at position " INT64_FORMAT,
					name, position),
			 errdetail("%s", error ? error : "It waits behind an earlier event of its stream."),
			 errhint("See es.dead_letter; es_retry() applies it, and es_discard() gives it up.")));
}

/*
 * Whether a projection (NULL: every one) has applied a position, as a new
 * snapshot sees it.  An error where one has stopped on the way there.
 */
static bool
has_applied(const char *name, int64 position)
{
	Datum		values[2];
	char		nulls[] = {name ? ' ' : 'n', ' ', '\0'};
	int64		settled = es_settled_position();
	bool		applied = true;
	uint64		n;
	EsSpi		spi;

	values[0] = name ? CStringGetTextDatum(name) : (Datum) 0;
	values[1] = Int64GetDatum(position);
	es_spi_begin(&spi);
	n = es_run(&select_progress, values, nulls);
	if (name && n == 0)
		es_projection_missing(name);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		int64		reached = DatumGetInt64(es_spi_value(i, 3, &isnull));
		char	   *error = es_spi_text(i, 4);

		/* One that appenders apply is as far as they have committed. */
		if (DatumGetBool(es_spi_value(i, 2, &isnull)))
			reached = Max(reached, settled);
		else if (error)
			report_stopped(es_spi_text(i, 1),
						   DatumGetInt64(es_spi_value(i, 5, &isnull)), error);
		if (reached >= position && DatumGetBool(es_spi_value(i, 7, &isnull)))
			report_dead(es_spi_text(i, 1), position, es_spi_text(i, 6));
		applied = applied && reached >= position;
	}
	es_spi_end(&spi);
	return applied;
}

static void
stop_waiting(int code, Datum arg)
{
	pg_atomic_fetch_sub_u32(&es_database()->waiters, 1);
	ConditionVariableCancelSleep();
}

/*
 * Sleep until the projection has applied the position or time is up.
 */
static bool
wait_until(const char *name, int64 position, TimestampTz deadline)
{
	EsDatabase *d = es_database();

	/* Workers that group events must look again now that somebody waits. */
	pg_atomic_fetch_add_u32(&d->waiters, 1);
	es_wake_database(MyDatabaseId, true);
	for (;;)
	{
		long		ms;

		ConditionVariablePrepareToSleep(&d->progress);
		if (has_applied(name, position))
			return true;
		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), deadline);
		if (ms <= 0)
			return false;
		/* What a standby replays comes without a word. */
		if (RecoveryInProgress())
			ms = Min(ms, STANDBY_LOOK_MS);
		(void) ConditionVariableTimedSleep(&d->progress, ms,
										   ES_WAIT_EVENT("EsWait"));
	}
}

/*
 * Refuse where waiting could not end, or would be no use.
 */
static void
check_can_wait(int64 position)
{
	int64		own;

	(void) es_database();
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("es_wait() cannot be used in a REPEATABLE READ or SERIALIZABLE transaction"),
				 errdetail("Its snapshot would not see what the projection applies."),
				 errhint("Wait before the transaction, or in READ COMMITTED.")));
	own = es_first_own_position();
	if (own != 0 && position >= own)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("cannot wait for an event that this transaction has not committed"),
				 errhint("Commit first, then wait.")));
}

static bool
wait_for(const char *name, int64 position, Datum timeout)
{
	bool		applied;
	TimestampTz deadline;

	check_can_wait(position);
	deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													   TimestampTzGetDatum(GetCurrentTimestamp()),
													   timeout));
	PG_ENSURE_ERROR_CLEANUP(stop_waiting, (Datum) 0);
	{
		applied = wait_until(name, position, deadline);
	}
	PG_END_ENSURE_ERROR_CLEANUP(stop_waiting, (Datum) 0);
	stop_waiting(0, (Datum) 0);
	return applied;
}

/*
 * es_wait(projection, position, timeout)
 *
 * Wait until a projection, with all its partitions, has applied a position:
 * true when the caller's next statement sees it, false after the timeout.
 * Errors: 55000 where the projection has stopped or could not apply the event
 * at that position, 42704 where there is none, 0A000 in REPEATABLE READ, whose
 * snapshot could not see the rows, and for a position that this very
 * transaction has taken.
 */
Datum
es_wait(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(wait_for(text_to_cstring(PG_GETARG_TEXT_PP(0)),
							PG_GETARG_INT64(1), PG_GETARG_DATUM(2)));
}

/* es_wait(position, timeout): the same for every projection. */
Datum
es_wait_all(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(wait_for(NULL, PG_GETARG_INT64(0), PG_GETARG_DATUM(1)));
}
