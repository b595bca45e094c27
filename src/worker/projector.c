/*-------------------------------------------------------------------------
 * projector.c
 *	  The process that applies the projections of one role.
 *
 * It is connected as that role, so the SQL of a projection has the rights of a
 * session of its owner and no others.  It owns the transactions: one for each
 * batch, READ COMMITTED, committed with es.projector_synchronous_commit.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "es.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "projection/apply.h"
#include "projection/registry.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "store/watermark.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "worker/shell.h"

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
	MemoryContext batch_context;	/* reset after every batch */
} state;

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
 * Learn the projections anew where their definitions may have changed.  There
 * are none where the extension is gone.
 */
static void
refresh(void)
{
	ListCell   *cell;

	begin_transaction();
	if (es_catalog_if_exists() == NULL)
		state.projections = NIL;
	else if (state.generation != es_projections_generation())
	{
		MemoryContext old;

		PushActiveSnapshot(GetTransactionSnapshot());
		foreach(cell, state.projections)
			es_projection_forget_plan((EsProjection *) lfirst(cell));
		state.projections = NIL;
		MemoryContextReset(state.projections_context);
		state.generation = es_projections_generation();
		old = MemoryContextSwitchTo(state.projections_context);
		state.projections = es_projections_of(state.owner);
		MemoryContextSwitchTo(old);
		PopActiveSnapshot();
	}
	commit();
}

/*
 * The projection that has events to apply and was not served for longest; or
 * NULL, and how long to sleep.
 */
static EsProjection *
next_projection(long *timeout)
{
	int64		settled = es_settled_peek();
	TimestampTz now = GetCurrentTimestamp();
	EsProjection *next = NULL;
	ListCell   *cell;

	*timeout = ES_HEARTBEAT_MS;
	foreach(cell, state.projections)
	{
		EsProjection *p = (EsProjection *) lfirst(cell);

		if (settled >= 0 && p->position >= settled)
			continue;
		if (p->retry_at > now)
			*timeout = Min(*timeout, es_worker_ms_until(p->retry_at));
		else if (next == NULL || p->served_at < next->served_at)
			next = p;
	}
	return next;
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
 * Apply one batch in one transaction.
 */
static void
apply(EsProjection *p)
{
	EsApplied	applied;

	begin_transaction();
	/* SPI asks for one; each statement takes a newer one of its own. */
	PushActiveSnapshot(GetTransactionSnapshot());
	applied = es_projection_apply(p);
	PopActiveSnapshot();
	commit();
	if (applied == ES_APPLIED)
	{
		es_projection_applied(p);
		ConditionVariableBroadcast(&es_database()->progress);
	}
	else if (applied == ES_GONE)
		state.generation = 0;
}

/*
 * The same, surviving every error of the user's SQL.
 */
static void
apply_safely(EsProjection *p)
{
	ErrorData  *volatile error = NULL;

	p->served_at = GetCurrentTimestamp();
	pgstat_report_activity(STATE_RUNNING, p->name);
	PG_TRY();
	{
		apply(p);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(state.batch_context);
		HOLD_INTERRUPTS();
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(state.batch_context);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	if (error)
	{
		fail(p, error);
		ConditionVariableBroadcast(&es_database()->progress);
	}
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
 * Apply what there is, a batch of each projection in turn.  Returns whether
 * there was anything.
 */
static bool
apply_all(long *timeout)
{
	bool		any = false;
	EsProjection *p;

	while ((p = next_projection(timeout)) != NULL)
	{
		apply_safely(p);
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
 */
static void
let_events_gather(TimestampTz round_began)
{
	long		ms = es_worker_ms_until(TimestampTzPlusMilliseconds(round_began,
																	es_batch_interval));

	if (ms <= 0 || pg_atomic_read_u32(&es_database()->waiters) > 0)
		return;
	es_worker_listen(false);
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
	state.projections_context = AllocSetContextCreate(TopMemoryContext,
													  "es projections",
													  ALLOCSET_DEFAULT_SIZES);
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
		long		timeout;

		MemoryContextReset(state.batch_context);
		es_worker_listen(true);
		set_synchronous_commit();
		refresh();
		if (es_worker_should_stop() || state.projections == NIL)
			break;
		if (apply_all(&timeout))
			let_events_gather(round_began);
		else
		{
			es_worker_report(NULL);
			es_worker_sleep(timeout);
		}
	}
	proc_exit(0);
}
