/*-------------------------------------------------------------------------
 * projector.c
 *	  The process that applies the projections of one role, and submits its
 *	  scheduled commands (timer.c).
 *
 * It is connected as that role, so the SQL of a projection has the rights of a
 * session of its owner and no others.  It owns the transactions: one for each
 * batch, READ COMMITTED, committed with es.projector_synchronous_commit.
 *
 * A role can have several of these processes.  They share the partitions out
 * by their rank among those that run, some for what is served and some for
 * what catches up or is rebuilt, so that the first does not wait for the
 * second; a process that has both goes round, and gives the second no more
 * than a slice of time between two batches of the first.  While a process
 * comes or goes two can think that a partition is theirs: the lock on the
 * checkpoint sees to it that one of them applies it at a time.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "es.h"
#include "fault.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "projection/apply.h"
#include "projection/batch.h"
#include "projection/rebuild.h"
#include "projection/registry.h"
#include "projection/poison.h"
#include "projection/run.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "store/watermark.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "worker/pace.h"
#include "worker/shell.h"
#include "worker/timer.h"

extern PGDLLEXPORT void es_projector_main(Datum arg);

/*
 * What the projector knows; changed by this file alone.
 */
static struct
{
	Oid			owner;
	Oid			user;			/* the owner, or the role its settings name */
	char	   *role;			/* the setting that makes it so */
	List	   *projections;
	MemoryContext projections_context;
	uint64		generation;		/* of the definitions as we know them */
	uint64		turn;			/* counts slices of what is far behind */
	uint64		round;			/* ends when everybody was served once */
	int64		applied;		/* positions in this round, of all projections */
	MemoryContext batch_context;	/* reset after every batch */
} state;

/* Events gather for so long at least, where es.batch_interval allows. */
#define LEAST_GATHER_MS	5

/* How long to leave a checkpoint alone that somebody else holds. */
#define BUSY_MS			20

/*
 * Be who we were when the session began, whatever user SQL has left behind.
 */
static void
restore_user(void)
{
	if (GetUserId() == state.user)
		return;
	(void) set_config_option("session_authorization", NULL,
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SET, true, 0, false);
	(void) set_config_option("role", state.role, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SET, true, 0, false);
}

static void
begin_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	restore_user();
	/* Whatever user SQL has set for the session. */
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;
	XactDeferrable = false;
}

static void
commit(void)
{
	CommitTransactionCommand();
	MemoryContextSwitchTo(state.batch_context);
}

/*
 * Keep what was learnt by applying a projection when its definition is read
 * anew.
 */
static void
carry_over(List *old, EsProjection *p)
{
	ListCell   *cell;

	foreach(cell, old)
	{
		EsProjection *o = (EsProjection *) lfirst(cell);

		if (strcmp(o->name, p->name) != 0 || o->partition != p->partition ||
			o->rebuild != p->rebuild)
			continue;
		p->suspect_to = o->suspect_to;
		p->fill_first = o->fill_first;
		p->collisions = o->collisions;
		p->served_at = o->served_at;
		p->turn = o->turn;
		p->round = o->round;
		p->pace = o->pace;
	}
}

/*
 * Learn the projections anew.
 */
static void
learn(void)
{
	MemoryContext context = AllocSetContextCreate(TopMemoryContext,
												  "es projections",
												  ALLOCSET_DEFAULT_SIZES);
	uint64		generation = es_projections_generation();
	MemoryContext old = MemoryContextSwitchTo(context);
	List	   *projections = es_projections_of(state.owner);
	ListCell   *cell;

	MemoryContextSwitchTo(old);
	foreach(cell, projections)
		carry_over(state.projections, (EsProjection *) lfirst(cell));
	foreach(cell, state.projections)
		es_projection_forget_plan((EsProjection *) lfirst(cell));
	if (state.projections_context)
		MemoryContextDelete(state.projections_context);
	state.projections = projections;
	state.projections_context = context;
	state.generation = generation;
}

/*
 * Mark this worker's share of the partitions.
 */
static void
take_share(void)
{
	int			workers;
	int			rank = es_worker_rank(&workers);
	int			heavy = 0;
	int			seen[2] = {0, 0};
	ListCell   *cell;

	foreach(cell, state.projections)
		heavy += es_is_far_behind((EsProjection *) lfirst(cell)) ? 1 : 0;
	/* So many workers are for these, but one for the others, if there are any. */
	heavy = Min(heavy, workers - (heavy < list_length(state.projections) ? 1 : 0));
	foreach(cell, state.projections)
	{
		EsProjection *p = (EsProjection *) lfirst(cell);
		int			i = seen[es_is_far_behind(p) ? 1 : 0]++;

		if (es_is_far_behind(p) && heavy > 0)
			p->mine = rank == workers - heavy + i % heavy;
		else
			p->mine = rank == i % (workers - heavy);
	}
}

/*
 * Bring up to date what this worker has to apply: nothing, where the
 * extension is gone.
 */
static void
refresh(void)
{
	begin_transaction();
	if (es_catalog_if_exists() == NULL)
		state.projections = NIL;
	else if (state.generation != es_projections_generation())
	{
		if (es_catalog_locked() != NULL)
		{
			PushActiveSnapshot(GetTransactionSnapshot());
			learn();
			PopActiveSnapshot();
		}
		else
			state.projections = NIL;
	}
	commit();
	take_share();
}

static bool
is_behind(const EsProjection *p, int64 settled)
{
	return es_is_far_behind(p) || settled - p->position > es_batch_size_of(p);
}

/*
 * How urgent it is to serve a projection, 0 most: one that is nearly caught up
 * comes before the next slice of one that is not, but only once.
 */
static int
urgency(const EsProjection *p, int64 settled)
{
	if (is_behind(p, settled))
		return 1;
	return p->turn < state.turn ? 0 : 2;
}

static bool
has_work(const EsProjection *p, int64 settled)
{
	if (p->rebuild > 0)
		return es_rebuild_has_work(p, settled);
	/* Without a settled position, only a transaction can tell. */
	return settled < 0 || p->position < settled;
}

/*
 * Whether a projection was served in this round, and what came since may gather.
 * Not where it failed; and not for longer than the least, where a slice of one
 * that is far behind came since, for with these a round may take minutes.
 */
static bool
may_gather(const EsProjection *p, int64 settled)
{
	if (p->round != state.round || is_behind(p, settled) ||
		p->retry_at != 0 || p->suspect_to > p->position)
		return false;
	return p->turn == state.turn ||
		es_worker_ms_left(TimestampTzPlusMilliseconds(p->served_at, LEAST_GATHER_MS),
						  LEAST_GATHER_MS) > 0;
}

/*
 * The projection to serve next, the most urgent and then the one that was not
 * served for longest; or NULL, and how long to sleep.
 */
static EsProjection *
next_projection(long *timeout)
{
	int64		settled = es_settled_peek();
	EsProjection *next = NULL;
	int			next_urgency = 0;
	ListCell   *cell;

	*timeout = ES_HEARTBEAT_MS;
	foreach(cell, state.projections)
	{
		EsProjection *p = (EsProjection *) lfirst(cell);
		int			u = urgency(p, settled);
		long		ms = es_worker_ms_left(p->retry_at, ES_HEARTBEAT_MS);

		if (!p->mine || !has_work(p, settled))
			continue;
		if (may_gather(p, settled))
			continue;
		if (ms > 0)
			*timeout = Min(*timeout, ms);
		else if (next == NULL || u < next_urgency ||
				 (u == next_urgency && p->served_at < next->served_at))
		{
			next = p;
			next_urgency = u;
		}
	}
	if (next != NULL)
	{
		if (next_urgency == 1)
			state.turn++;
		next->turn = state.turn;
		next->round = state.round;
	}
	return next;
}

/*
 * Whether this worker has anything else to do.
 */
static bool
has_others(const EsProjection *p)
{
	ListCell   *cell;

	foreach(cell, state.projections)
	{
		const EsProjection *other = (const EsProjection *) lfirst(cell);

		if (other != p && other->mine)
			return true;
	}
	return false;
}

/*
 * Say in pg_stat_activity what is applied.
 */
static void
report(const EsProjection *p)
{
	int64		lag = es_settled_peek() - p->position;
	char	   *what = psprintf("es projector: %s%s",
								p->rebuild > 0 ? "rebuilding " : "", p->name);

	pgstat_report_appname(what);
	pgstat_report_activity(STATE_RUNNING,
						   psprintf("%s, %s events behind", what,
									es_worker_number(Max(lag, 0))));
}

/*
 * The same when there is nothing to apply.
 */
static void
report_idle(void)
{
	int			stopped = 0;
	ListCell   *cell;

	foreach(cell, state.projections)
		stopped += ((EsProjection *) lfirst(cell))->retries > 0 ? 1 : 0;
	pgstat_report_appname("es projector");
	es_worker_report_idle(stopped > 0
						  ? psprintf("es projector: %d stopped, see es_projections", stopped)
						  : "es projector: caught up");
}

/*
 * Record what made a batch fail, in a transaction of its own.
 */
static void
fail(EsProjection *p, ErrorData *error)
{
	begin_transaction();
	PushActiveSnapshot(GetTransactionSnapshot());
	es_projection_failed(p, error);
	PopActiveSnapshot();
	commit();
}

/*
 * Apply one batch in one transaction.  Returns whether there was one.
 */
static bool
apply(EsProjection *p)
{
	EsApplied	applied;

	begin_transaction();
	/* SPI asks for one; each statement takes a newer one of its own. */
	PushActiveSnapshot(GetTransactionSnapshot());
	applied = p->rebuild > 0 ? es_rebuild_step(p) : es_projection_apply(p);
	PopActiveSnapshot();
	/* A saga's events are announced, so they must not be lost again. */
	if (es_first_own_position() != 0)
		es_worker_commit_durably();
	commit();
	ES_FAULT("projector.committed");
	switch (applied)
	{
		case ES_APPLIED:
			state.applied += p->attempt_to - p->attempt_after;
			es_projection_applied(p);
			ConditionVariableBroadcast(&es_database()->progress);
			break;
		case ES_CAUGHT_UP:
			break;
		case ES_BUSY:
			p->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), BUSY_MS);
			break;
		case ES_STALE:
			state.generation = 0;
			break;
		case ES_STEPPED:
			ConditionVariableBroadcast(&es_database()->progress);
			state.generation = 0;
			break;
	}
	return applied == ES_APPLIED;
}

/*
 * The same, surviving every error of the user's SQL.
 */
static void
apply_safely(EsProjection *p)
{
	ErrorData  *volatile error = NULL;
	volatile bool applied = false;

	es_pace_before(p, has_others(p));
	p->retry_at = 0;
	report(p);
	PG_TRY();
	{
		applied = apply(p);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(state.batch_context);
		HOLD_INTERRUPTS();
		error = CopyErrorData();
		FlushErrorState();
		AbortOutOfAnyTransaction();
		MemoryContextSwitchTo(state.batch_context);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	if (error)
	{
		fail(p, error);
		ConditionVariableBroadcast(&es_database()->progress);
	}
	else if (applied)
		es_pace_after(p);
	es_worker_report_memory();
	pgstat_report_stat(true);
}

/*
 * Go by es.projector_synchronous_commit, which a reload may have changed.
 */
static void
set_synchronous_commit(void)
{
	static int	current = -1;

	if (current == es_projector_synchronous_commit)
		return;
	current = es_projector_synchronous_commit;
	SetConfigOption("synchronous_commit",
					GetConfigOption("es.projector_synchronous_commit", false, false),
					PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * Apply what there is, a batch of each projection in turn, and more of those
 * that have more than one.  Returns whether there was anything.
 */
static bool
apply_all(long *timeout)
{
	bool		any = false;
	EsProjection *p;

	state.applied = 0;
	state.round++;
	while ((p = next_projection(timeout)) != NULL)
	{
		apply_safely(p);
		es_timers_run(state.owner, state.batch_context);
		any = true;
		MemoryContextReset(state.batch_context);
		CHECK_FOR_INTERRUPTS();
		if (es_worker_should_stop())
			break;
		refresh();
	}
	return any;
}

/*
 * Let events gather before the next round, unless somebody waits for them.
 *
 * A batch costs much the same however few its events are, so when these come
 * fast it pays to wait: a millisecond for each that the last round has applied.
 * That settles at the shortest wait below a thousand events a second, and at
 * es.batch_interval well above.
 */
static void
let_events_gather(TimestampTz round_began, uint64 changes, long timeout)
{
	long		interval;
	long		ms;
	long		until_timer;

	es_worker_listen(false);
	/*
	 * Appenders have set the latch while we listened, so forget that.  Who waits,
	 * stops us or changes definitions wrote so before he set it, and we look after.
	 */
	es_worker_sleep(0);
	if (pg_atomic_read_u32(&es_database()->waiters) > 0 ||
		es_worker_should_stop() || changes != es_changes())
		return;

	interval = Min(es_batch_interval, Max(LEAST_GATHER_MS, state.applied));
	ms = es_worker_ms_left(TimestampTzPlusMilliseconds(round_began, interval), interval);
	until_timer = es_timers_timeout();
	ms = Min(ms, Min(timeout, until_timer));
	if (ms > 0)
		es_worker_sleep(ms);
}

static void
begin(Datum arg)
{
	Oid			database = es_worker_begin(ES_PROJECTOR, arg, &state.owner);

	BackgroundWorkerInitializeConnectionByOid(database, state.owner, ES_WORKER_FLAGS);
	state.user = GetUserId();
	state.role = MemoryContextStrdup(TopMemoryContext,
									 GetConfigOption("role", false, false));
	es_worker_set_defaults();
	SetConfigOption("application_name", "es projector", PGC_USERSET, PGC_S_SESSION);
	state.batch_context = AllocSetContextCreate(TopMemoryContext, "es batch",
												ALLOCSET_DEFAULT_SIZES);
	MemoryContextSwitchTo(state.batch_context);
}

void
es_projector_main(Datum arg)
{
	begin(arg);
	for (;;)
	{
		TimestampTz round_began = GetCurrentTimestamp();
		uint64		changes = es_changes();
		long		timeout;

		MemoryContextReset(state.batch_context);
		es_worker_listen(true);
		set_synchronous_commit();
		refresh();
		es_timers_run(state.owner, state.batch_context);
		if (es_worker_should_stop() ||
			(state.projections == NIL && !es_timers_wanted()))
			break;
		if (apply_all(&timeout))
			let_events_gather(round_began, changes, timeout);
		/* Who waits for a lock, as a timer's command may, uses up wake-ups. */
		else if (changes == es_changes())
		{
			long		until_timer = es_timers_timeout();

			report_idle();
			es_worker_sleep(Min(timeout, until_timer));
		}
	}
	proc_exit(0);
}
