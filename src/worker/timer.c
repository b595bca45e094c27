/*-------------------------------------------------------------------------
 * timer.c
 *	  Submitting a role's scheduled commands when they are due.
 *
 * Part of the projector, which is connected as that role.  Each command is one
 * transaction, with the row that it came from; they are committed as durably
 * as a client's would be, since events are announced that they append.
 *
 * The role's projections are served by the same process.  So a command that
 * cannot have a lock is put off, and of many that are due, as after a downtime,
 * only some are submitted before the projections have their turn.
 *
 * A process that serves timers alone stays for a while after the last one, so
 * that it is not started anew for each of several.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "command/schedule.h"
#include "es.h"
#include "fault.h"
#include "guc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "projection/poison.h"
#include "storage/proc.h"
#include "store/watermark.h"
#include "utils/guc.h"
#include "utils/snapmgr.h"
#include "worker/shell.h"
#include "worker/timer.h"

/* How long to stay when idle, and for a timer that comes soon. */
#define LINGER_MS		90000
#define SOON_MS			(5 * 60000)

/* How long to leave a command to who has it locked. */
#define BUSY_MS			1000

/*
 * How long a command may wait for a lock, such as that of its stream, and how
 * long commands are submitted at a stretch: the role's projections wait.
 */
#define LOCK_TIMEOUT_MS	2000
#define STRETCH_MS		200

/*
 * What this process knows of its role's timers; changed by this file alone.
 */
static struct
{
	uint64		changes;		/* of timers, as of when next was read */
	bool		known;			/* next was read at all */
	TimestampTz next;			/* when the next one is due */
	TimestampTz served_at;		/* when the last one was tried; 0: never */
} state;

static void
begin_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;
	XactDeferrable = false;
	PushActiveSnapshot(GetTransactionSnapshot());
}

static void
commit(MemoryContext context)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/*
 * Let the transaction wait for locks no longer than it should, or than the role
 * wants.
 */
static void
limit_waits(void)
{
	char		timeout[32];

	if (LockTimeout > 0 && LockTimeout <= LOCK_TIMEOUT_MS)
		return;
	snprintf(timeout, sizeof(timeout), "%d", LOCK_TIMEOUT_MS);
	(void) set_config_option("lock_timeout", timeout,
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * Submit the command that has been due for longest.  False where there is
 * none.  "timer" is set before user code runs.
 */
static bool
submit_one(Oid owner, MemoryContext context, EsTimer *volatile *timer)
{
	MemoryContext old;

	begin_transaction();
	limit_waits();
	old = MemoryContextSwitchTo(context);
	*timer = es_timer_take(owner);
	MemoryContextSwitchTo(old);
	if (*timer)
	{
		pgstat_report_activity(STATE_RUNNING,
							   psprintf("es timer: %s", (*timer)->command));
		es_timer_submit(*timer);
		ES_FAULT("timer.submitted");
		es_worker_commit_durably();
	}
	commit(context);
	if (*timer)
		ES_FAULT("timer.committed");
	return *timer != NULL;
}

/*
 * Whether a command that failed is not tried again: it was rejected, or has
 * failed too often and not for what may pass by itself.
 */
static bool
is_final(const EsTimer *timer, const ErrorData *error)
{
	if (error->sqlerrcode == ERRCODE_ES_COMMAND_REJECTED)
		return true;
	return timer->attempts + 1 >= es_schedule_attempts &&
		!es_error_is_transient(error->sqlerrcode);
}

/*
 * The same, surviving every error of user code.
 */
static bool
submit_safely(Oid owner, MemoryContext context)
{
	EsTimer    *volatile timer = NULL;
	ErrorData  *volatile error = NULL;
	volatile bool any = true;

	PG_TRY();
	{
		any = submit_one(owner, context, &timer);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		HOLD_INTERRUPTS();
		error = CopyErrorData();
		FlushErrorState();
		AbortCurrentTransaction();
		MemoryContextSwitchTo(context);
		RESUME_INTERRUPTS();
	}
	PG_END_TRY();
	if (error && timer == NULL)
		ReThrowError(error);
	if (error)
	{
		begin_transaction();
		es_timer_failed(timer, error, is_final(timer, error),
						es_retry_time(GetCurrentTimestamp(), timer->attempts + 1));
		commit(context);
	}
	pgstat_report_stat(true);
	return any;
}

/*
 * Read when the next timer is due, where that may have changed.
 */
static void
look(Oid owner, MemoryContext context)
{
	uint64		changes = es_timer_changes();

	if (state.known && state.changes == changes && state.next > GetCurrentTimestamp())
		return;
	begin_transaction();
	state.next = es_catalog_if_exists() == NULL ? DT_NOEND : es_timer_next(owner);
	commit(context);
	state.changes = changes;
	state.known = true;
}

/*
 * Submit what is due for a role, for a while.  Cheap where nothing is.  What is
 * palloc'd goes into the context, which the caller resets.
 */
void
es_timers_run(Oid owner, MemoryContext context)
{
	TimestampTz until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), STRETCH_MS);

	look(owner, context);
	while (state.next <= GetCurrentTimestamp() &&
		   GetCurrentTimestamp() < until && !es_worker_should_stop())
	{
		CHECK_FOR_INTERRUPTS();
		state.served_at = GetCurrentTimestamp();
		if (!submit_safely(owner, context))
		{
			/* Others have what is due, and will most likely see to it. */
			state.next = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), BUSY_MS);
			break;
		}
		state.known = false;
		look(owner, context);
	}
}

/*
 * How long to sleep for the sake of timers.
 */
long
es_timers_timeout(void)
{
	if (state.next == DT_NOEND)
		return ES_HEARTBEAT_MS;
	return es_worker_ms_until(state.next);
}

/*
 * Whether this process shall stay for timers alone.
 */
bool
es_timers_wanted(void)
{
	TimestampTz now = GetCurrentTimestamp();

	if (state.next != DT_NOEND && state.next <= TimestampTzPlusMilliseconds(now, SOON_MS))
		return true;
	return state.served_at != 0 &&
		now < TimestampTzPlusMilliseconds(state.served_at, LINGER_MS);
}
