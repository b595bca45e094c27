/*-------------------------------------------------------------------------
 * scheduler.c
 *	  The process that serves one database: it announces news and keeps its
 *	  projectors running.
 *
 * It connects as the bootstrap superuser and runs nothing but our own SQL.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "es.h"
#include "fanout/notify.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "projection/registry.h"
#include "storage/ipc.h"
#include "store/identity.h"
#include "store/watermark.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "worker/shell.h"

extern PGDLLEXPORT void es_scheduler_main(Datum arg);

/*
 * What the scheduler knows; changed by this file alone.
 */
static struct
{
	Oid			log;			/* es.event, as long as it is the same */
	int64		announced;		/* the settled position last announced */
	TimestampTz announced_at;
	uint64		generation;		/* of the projections as we know them */
	List	   *owners;			/* roles that need a projector */
	MemoryContext owners_context;
	List	   *restarts;		/* when projectors were started */
} state;

/*
 * Learn who needs a projector: nobody, while the database is a copy that was
 * not activated.
 */
static void
learn_owners(void)
{
	MemoryContext old;

	MemoryContextReset(state.owners_context);
	state.owners = NIL;
	if (!es_identity_active())
		return;
	old = MemoryContextSwitchTo(state.owners_context);
	state.owners = es_projection_owners();
	MemoryContextSwitchTo(old);
}

/*
 * A log that is new to us, be it that the extension was created again, has
 * nothing announced.  Its counter begins here where nobody has used it yet.
 */
static void
meet_log(Oid log)
{
	if (state.log == log)
		return;
	state.log = log;
	state.announced = 0;
	(void) es_settled_position();
}

/*
 * Look at the tables where something in them may have changed.  False where
 * the extension is gone.
 */
static bool
refresh(void)
{
	bool		installed;

	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	installed = es_catalog_if_exists() != NULL;
	if (installed)
		meet_log(es_catalog()->event);
	if (installed && state.generation != es_projections_generation())
	{
		state.generation = es_projections_generation();
		learn_owners();
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	return installed;
}

/*
 * Write the settled position down and announce it, in a transaction.
 */
static void
publish_in_transaction(int64 settled, bool notify)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	es_settled_record(settled);
	if (notify && es_identity_active())
		es_notify_settled(settled);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * The same, without the announcement where that fails: a listener that sleeps
 * in a transaction can fill the queue, and no reader shall suffer from it.
 */
static void
publish(int64 settled)
{
	MemoryContext context = CurrentMemoryContext;
	static bool failing = false;

	PG_TRY();
	{
		publish_in_transaction(settled, true);
		failing = false;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		if (!failing)
			ereport(LOG,
					(errmsg("could not announce new events: %s", error->message)));
		failing = true;
		publish_in_transaction(settled, false);
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	state.announced = settled;
	state.announced_at = GetCurrentTimestamp();
	pgstat_report_stat(true);
}

/*
 * Announce what has settled since, at most once in es.notify_interval.
 * Returns how long to sleep before there may be more to announce.
 */
static long
announce(void)
{
	int64		settled = es_settled_peek();
	long		ms;

	if (settled <= state.announced)
		return ES_HEARTBEAT_MS;
	ms = es_worker_ms_until(TimestampTzPlusMilliseconds(state.announced_at,
														es_notify_interval));
	if (ms > 0)
	{
		/* Until then nobody needs to wake us. */
		es_worker_listen(false);
		return ms;
	}
	publish(settled);
	return 0;
}

/*
 * Start the projectors that are missing.  Returns how long to sleep.
 */
static long
start_projectors(void)
{
	long		timeout = ES_HEARTBEAT_MS;
	ListCell   *cell;

	es_workers_reap(ES_PROJECTOR, MyDatabaseId);
	foreach(cell, state.owners)
	{
		Oid			owner = lfirst_oid(cell);

		if (!es_worker_exists(ES_PROJECTOR, MyDatabaseId, owner) &&
			es_restart_due(&state.restarts, ES_PROJECTOR, MyDatabaseId, owner,
						   &timeout))
		{
			(void) es_worker_start(ES_PROJECTOR, MyDatabaseId, owner);
			timeout = Min(timeout, 1000);
		}
	}
	return timeout;
}

/*
 * Begin to serve the database, or go away where there is no log in it.
 */
static void
begin(Datum arg)
{
	Oid			database = es_worker_begin(ES_SCHEDULER, arg, NULL);

	BackgroundWorkerInitializeConnectionByOid(database, InvalidOid, 0);
	es_worker_set_defaults();
	SetConfigOption("synchronous_commit", "off", PGC_SUSET, PGC_S_OVERRIDE);
	state.owners_context = AllocSetContextCreate(TopMemoryContext, "es owners",
												 ALLOCSET_SMALL_SIZES);
	if (!refresh())
	{
		(void) es_want_database(database, false);
		proc_exit(0);
	}
	es_serve_database(true);
}

void
es_scheduler_main(Datum arg)
{
	MemoryContext loop;

	begin(arg);
	loop = AllocSetContextCreate(TopMemoryContext, "es scheduler",
								 ALLOCSET_DEFAULT_SIZES);
	for (;;)
	{
		long		timeout;

		MemoryContextSwitchTo(loop);
		MemoryContextReset(loop);
		es_worker_listen(true);
		if (es_worker_should_stop())
			break;
		if (!refresh())
		{
			(void) es_want_database(MyDatabaseId, false);
			break;
		}
		MemoryContextSwitchTo(loop);
		timeout = start_projectors();
		timeout = Min(timeout, announce());
		es_worker_report(NULL);
		if (timeout > 0)
			es_worker_sleep(timeout);
		else
			CHECK_FOR_INTERRUPTS();
	}
	proc_exit(0);
}
