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
#include "projection/apply.h"
#include "storage/ipc.h"
#include "store/wakeup.h"
#include "store/watermark.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(es_wait);

static EsStatement select_progress = ES_SQL(
	"SELECT position, error, error_position FROM es.checkpoint WHERE projection = $1",
	1, TEXTOID);

/*
 * Whether the projection has applied a position, as a new snapshot sees it.
 * An error where it has stopped on the way there.
 */
static bool
has_applied(const char *name, int64 position)
{
	Datum		key = CStringGetTextDatum(name);
	bool		isnull;
	int64		applied;
	char	   *error;
	int64		error_position;
	EsSpi		spi;

	es_spi_begin(&spi);
	if (es_run(&select_progress, &key, NULL) == 0)
		es_projection_missing(name);
	applied = DatumGetInt64(es_spi_value(0, 1, &isnull));
	error = es_spi_text(0, 2);
	error_position = DatumGetInt64(es_spi_value(0, 3, &isnull));
	if (applied < position && error != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projection \"%s\" has stopped at position " INT64_FORMAT,
						name, error_position),
				 errdetail("%s", error),
				 errhint("Mend what the error names and call es_resume().")));
	es_spi_end(&spi);
	return applied >= position;
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
		(void) ConditionVariableTimedSleep(&d->progress, ms,
										   ES_WAIT_EVENT("EsWait"));
	}
}

/*
 * es_wait(projection, position, timeout)
 *
 * Wait until a projection has applied a position: true when the caller's next
 * statement sees it, false after the timeout.  Errors: 55000 where the
 * projection has stopped, 42704 where there is none, 0A000 in REPEATABLE READ,
 * whose snapshot could not see the rows, and for a position that this very
 * transaction has taken.
 */
Datum
es_wait(PG_FUNCTION_ARGS)
{
	char	   *name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	int64		position = PG_GETARG_INT64(1);
	int64		own;
	bool		applied;
	TimestampTz deadline;

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

	deadline = DatumGetTimestampTz(DirectFunctionCall2(timestamptz_pl_interval,
													   TimestampTzGetDatum(GetCurrentTimestamp()),
													   PG_GETARG_DATUM(2)));
	PG_ENSURE_ERROR_CLEANUP(stop_waiting, (Datum) 0);
	{
		applied = wait_until(name, position, deadline);
	}
	PG_END_ENSURE_ERROR_CLEANUP(stop_waiting, (Datum) 0);
	stop_waiting(0, (Datum) 0);
	PG_RETURN_BOOL(applied);
}
