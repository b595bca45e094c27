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
#include "command/schedule.h"
#include "es.h"
#include "fanout/change.h"
#include "fanout/notify.h"
#include "fault.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "projection/registry.h"
#include "storage/ipc.h"
#include "store/dedup.h"
#include "store/identity.h"
#include "store/watermark.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "worker/shell.h"

extern PGDLLEXPORT void es_scheduler_main(Datum arg);

/* An announcement that failed is tried again after this time. */
#define ANNOUNCE_RETRY_MS	1000

/*
 * Old command ids are looked for so often, and forgotten so many at a time
 * with a pause between.
 */
#define PRUNE_MS			60000
#define PRUNE_STEP			1000
#define PRUNE_PAUSE_MS		100

/*
 * A session that waits for a synchronous standby in a commit that notifies
 * holds the lock of all notifiers, and we do not wait for it longer than that.
 */
#define ANNOUNCE_LOCK_TIMEOUT	"1s"

/*
 * What the scheduler knows; changed by this file alone.
 */
static struct
{
	Oid			log;			/* es.event, as long as it is the same */
	bool		new_log;		/* nothing of it was announced yet */
	int64		recorded;		/* the settled position last written down */
	int64		announced;		/* and last announced; -1 before we know */
	bool		unrecorded;		/* which is not written down */
	bool		failing;		/* the latest announcement failed, or may have */
	TimestampTz published_at;
	TimestampTz announce_at;	/* not before then; set where it failed */
	uint64		generation;		/* of the projections as we know them */
	List	   *owners;			/* EsOwner: roles that need projectors */
	MemoryContext owners_context;
	List	   *restarts;		/* when projectors were started */
	uint64		timer_changes;	/* as of when the next two were read */
	TimestampTz next_timer;		/* when one is due that is not yet */
	List	   *timer_owners;	/* roles that have one due */
	TimestampTz prune_at;		/* when to forget old command ids */
	int			retention;		/* that they were last forgotten by */
} state;

/*
 * Who has a scheduled command due needs a projector, too.
 */
static void
add_timer_owners(void)
{
	ListCell   *cell;

	foreach(cell, state.timer_owners)
	{
		Oid			role = lfirst_oid(cell);
		bool		found = false;
		ListCell   *other;

		foreach(other, state.owners)
			found = found || ((EsOwner *) lfirst(other))->role == role;
		if (!found)
		{
			EsOwner    *owner = palloc0(sizeof(EsOwner));

			owner->role = role;
			owner->processes = 1;
			state.owners = lappend(state.owners, owner);
		}
	}
}

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
	state.timer_owners = NIL;
	state.next_timer = DT_NOEND;
	if (!es_identity_active())
		return;
	old = MemoryContextSwitchTo(state.owners_context);
	state.owners = es_projection_owners();
	state.timer_owners = es_timer_owners(&state.next_timer);
	add_timer_owners();
	MemoryContextSwitchTo(old);
}

/*
 * Whether to look at the timers: they have changed, or one is or was due.
 */
static bool
timers_may_have_changed(void)
{
	uint64		changes = es_timer_changes();
	bool		may = changes != state.timer_changes || state.timer_owners != NIL ||
		state.next_timer <= GetCurrentTimestamp();

	state.timer_changes = changes;
	return may;
}

/*
 * A log that is new to us, be it that the extension was created again, has
 * nothing announced.  Its counter begins here where nobody has used it yet, or
 * a subscription has ended that fed it.
 */
static void
meet_log(Oid log)
{
	(void) es_settled_position();
	if (state.log == log)
		return;
	state.log = log;
	state.new_log = true;
	state.recorded = 0;
	state.announced = -1;
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
	installed = es_catalog_locked() != NULL;
	PushActiveSnapshot(GetTransactionSnapshot());
	if (installed)
		meet_log(es_catalog()->event);
	if (installed && (timers_may_have_changed() ||
					  state.generation != es_projections_generation()))
	{
		state.generation = es_projections_generation();
		learn_owners();
	}
	PopActiveSnapshot();
	CommitTransactionCommand();
	return installed;
}

/*
 * Write the settled position down and announce it, and what has changed in
 * watched tables, in a transaction.  A listener that is told of a position
 * finds it written down.
 */
static void
publish_in_transaction(int64 settled, bool announce)
{
	bool		changes = announce && es_changes_pending();
	const EsCatalog *catalog;

	/* What is committed after this tells us again. */
	if (changes)
		es_changes_expect(false);
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	catalog = es_catalog_locked();
	if (catalog == NULL || catalog->event != state.log)
	{
		/* refresh() sees to that. */
		CommitTransactionCommand();
		return;
	}
	PushActiveSnapshot(GetTransactionSnapshot());
	if (settled > state.recorded)
		es_settled_record(settled);
	if (state.announced < 0)
	{
		state.announced = es_announced_position();
		state.failing = true;
	}
	if (announce)
	{
		bool		active = es_identity_active();

		(void) set_config_option("lock_timeout", ANNOUNCE_LOCK_TIMEOUT,
								 PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
		if (active && settled > state.announced)
		{
			es_announce(state.announced, settled);
			state.unrecorded = true;
		}
		if (changes)
			es_changes_announce(!active);
	}
	PopActiveSnapshot();
	ES_FAULT("scheduler.settled");
	CommitTransactionCommand();
	ES_FAULT("scheduler.announced");
	state.recorded = Max(state.recorded, settled);
	if (announce)
		state.announced = Max(state.announced, settled);
}

/*
 * Write down, after the listeners have been told, that they were.
 */
static void
record_announcement(void)
{
	if (!state.unrecorded && !state.failing)
		return;
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	if (es_catalog_locked() != NULL)
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		if (state.unrecorded)
			es_announced_record(state.announced);
		else
			es_announce_mended();
		PopActiveSnapshot();
	}
	CommitTransactionCommand();
	state.unrecorded = false;
	state.failing = false;
}

/*
 * The announcement failed: count it, and try again a little later.
 */
static void
announcement_failed(const ErrorData *error)
{
	if (state.announce_at == 0)
		ereport(LOG,
				(errmsg("could not announce new events: %s", error->message),
				 errdetail("They are announced as soon as that is possible; appends do not depend on it."),
				 errhint("See es_channels; pg_notification_queue_usage() tells whether a listener sleeps in a transaction.")));
	state.announce_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													ANNOUNCE_RETRY_MS);
	state.failing = true;
	es_changes_expect(true);
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	es_announce_failed(error);
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/*
 * Publish, without the announcement where that fails: a listener that sleeps
 * in a transaction can fill the queue, and no reader shall suffer from it.
 */
static void
publish(int64 settled)
{
	MemoryContext context = CurrentMemoryContext;
	ErrorData  *volatile error = NULL;

	if (es_worker_ms_left(state.announce_at, ANNOUNCE_RETRY_MS) > 0)
		publish_in_transaction(settled, false);
	else
	{
		PG_TRY();
		{
			publish_in_transaction(settled, true);
			record_announcement();
			state.announce_at = 0;
		}
		PG_CATCH();
		{
			MemoryContextSwitchTo(context);
			error = CopyErrorData();
			FlushErrorState();
			AbortCurrentTransaction();
		}
		PG_END_TRY();
	}
	if (error)
	{
		announcement_failed(error);
		publish_in_transaction(settled, false);
	}
	MemoryContextSwitchTo(context);
	state.published_at = GetCurrentTimestamp();
	pgstat_report_stat(true);
}

/*
 * Tell the sessions in es_fetch() that the settled position has moved.
 */
static void
wake_consumers(int64 settled)
{
	static int64 told = -1;

	if (settled == told)
		return;
	told = settled;
	ConditionVariableBroadcast(&es_database()->news);
}

/*
 * Announce what has settled since, at most once in es.notify_interval.
 * Returns how long to sleep before there may be more to announce.
 */
static long
announce(void)
{
	int64		settled = es_settled_peek();
	TimestampTz when = TimestampTzPlusMilliseconds(state.published_at,
												   es_notify_interval);
	long		ms;

	wake_consumers(settled);
	if (settled <= state.announced && !es_changes_pending())
		return ES_HEARTBEAT_MS;
	/* Where it failed, and there is nothing new to write down meanwhile. */
	ms = es_worker_ms_left(state.announce_at, ANNOUNCE_RETRY_MS);
	if (settled > state.recorded || ms == 0)
		ms = es_worker_ms_left(when, es_notify_interval);
	if (ms > 0)
	{
		/* Until then nobody needs to wake us. */
		es_worker_listen(settled <= state.recorded);
		return ms;
	}
	publish(settled);
	return 0;
}

/*
 * Lower a timeout.  Not by Min(), which evaluates its arguments twice.
 */
static void
sooner(long *timeout, long ms)
{
	*timeout = Min(*timeout, ms);
}

/*
 * Start the missing ones of an owner's projectors.  Returns how long to sleep.
 */
static long
start_those_of(Oid owner, int processes)
{
	long		timeout = ES_HEARTBEAT_MS;

	for (int i = 0; i < processes; i++)
		if (!es_worker_exists(ES_PROJECTOR, MyDatabaseId, owner, i) &&
			es_restart_due(&state.restarts, ES_PROJECTOR, MyDatabaseId, owner, i,
						   &timeout))
		{
			(void) es_worker_start(ES_PROJECTOR, MyDatabaseId, owner, i);
			timeout = Min(timeout, 1000);
		}
	return timeout;
}

/*
 * Forget when the projectors were started that are not needed any more, so
 * that they start at once when they are.
 */
static void
forget_unneeded(void)
{
	for (int i = list_length(state.restarts) - 1; i >= 0; i--)
	{
		EsRestart  *r = (EsRestart *) list_nth(state.restarts, i);
		bool		needed = false;
		ListCell   *cell;

		foreach(cell, state.owners)
		{
			EsOwner    *owner = (EsOwner *) lfirst(cell);

			needed = needed || (owner->role == r->key && r->number < owner->granted);
		}
		if (!needed && r->failures == 0)
			es_restart_forget(&state.restarts, r->key, r->number);
	}
}

/*
 * Share es.max_projectors out: each owner gets one, and the rest goes round
 * among those who have work for more.
 */
static void
grant_processes(void)
{
	int			left = es_max_projectors - list_length(state.owners);
	bool		any = true;
	ListCell   *cell;

	foreach(cell, state.owners)
		((EsOwner *) lfirst(cell))->granted = 1;
	while (left > 0 && any)
	{
		any = false;
		foreach(cell, state.owners)
		{
			EsOwner    *owner = (EsOwner *) lfirst(cell);

			if (left == 0 || owner->granted >= owner->processes)
				continue;
			owner->granted++;
			left--;
			any = true;
		}
	}
}

/*
 * Start the projectors that are missing and dismiss those that are too many.
 * Returns how long to sleep.
 */
static long
start_projectors(void)
{
	long		timeout = ES_HEARTBEAT_MS;
	ListCell   *cell;

	es_workers_reap(ES_PROJECTOR, MyDatabaseId);
	grant_processes();
	forget_unneeded();
	foreach(cell, state.owners)
	{
		EsOwner    *owner = (EsOwner *) lfirst(cell);

		es_workers_dismiss(ES_PROJECTOR, MyDatabaseId, owner->role, owner->granted);
		sooner(&timeout, start_those_of(owner->role, owner->granted));
	}
	return timeout;
}

/*
 * Forget old command ids, a few at a time.  Returns how long to sleep before
 * there may be more.
 */
static long
prune(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		n;

	if (es_worker_ms_left(state.prune_at, PRUNE_MS) > 0 &&
		state.retention == es_command_retention)
		return es_worker_ms_until(state.prune_at);
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	PushActiveSnapshot(GetTransactionSnapshot());
	n = es_dedup_prune(PRUNE_STEP);
	PopActiveSnapshot();
	CommitTransactionCommand();
	pgstat_report_stat(true);
	state.retention = es_command_retention;
	state.prune_at = TimestampTzPlusMilliseconds(now, n < PRUNE_STEP ? PRUNE_MS : PRUNE_PAUSE_MS);
	return es_worker_ms_until(state.prune_at);
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
	/* A predecessor may have left some. */
	es_changes_expect(true);
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
		/* First what somebody may wait for. */
		timeout = announce();
		if (!refresh())
		{
			(void) es_want_database(MyDatabaseId, false);
			break;
		}
		MemoryContextSwitchTo(loop);
		if (state.new_log)
			timeout = 0;
		state.new_log = false;
		sooner(&timeout, start_projectors());
		sooner(&timeout, prune());
		if (state.next_timer != DT_NOEND)
			sooner(&timeout, es_worker_ms_until(state.next_timer));
		es_worker_report_idle(psprintf("es scheduler: settled at position %s",
									   es_worker_number(state.announced)));
		if (timeout > 0)
			es_worker_sleep(timeout);
		else
			CHECK_FOR_INTERRUPTS();
	}
	proc_exit(0);
}
