/*-------------------------------------------------------------------------
 * timer.c
 *	  Submitting a role's scheduled commands when they are due.
 *
 * Part of the projector, which is connected as that role.  Each command is one
 * transaction, with the row that it came from; they are committed as durably
 * as a client's would be, since events are announced that they append.
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
#include "miscadmin.h"
#include "pgstat.h"
#include "projection/poison.h"
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
 * Submit the command that has been due for longest.  False where there is
 * none.  "timer" is set before user code runs.
 */
static bool
submit_one(Oid owner, MemoryContext context, EsTimer *volatile *timer)
{
	MemoryContext old;

	begin_transaction();
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
		es_timer_failed(timer, error,
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
 * Submit what is due for a role.  Cheap where nothing is.  What is palloc'd
 * goes into the context, which the caller resets.
 */
void
es_timers_run(Oid owner, MemoryContext context)
{
	look(owner, context);
	while (state.next <= GetCurrentTimestamp() && !es_worker_should_stop())
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
