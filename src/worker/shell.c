/*-------------------------------------------------------------------------
 * shell.c
 *	  What the background workers have in common: their table in shared
 *	  memory, starting, stopping, sleeping.
 *
 * States of an entry of the table, all changes under the lock:
 *
 *		free -> starting	es_worker_start() registers the process (pid 0)
 *		starting -> running	the process attaches (es_worker_begin())
 *		starting -> free	it never came up: its starter reaps it, or the
 *							starter's successor does
 *		running -> free		the process exits, however it does
 *
 * Every use of an entry has a generation of its own, which the process must
 * know to attach: one that comes up after it was given up goes away again.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "es.h"
#include "funcapi.h"
#include "guc.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "store/wakeup.h"
#include "store/watermark.h"
#include "tcop/tcopprot.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "worker/shell.h"

PG_FUNCTION_INFO_V1(es_stat_worker);

typedef struct Worker
{
	EsWorkerKind kind;
	uint32		generation;
	Oid			database;
	Oid			role;
	int			number;			/* 0, 1 ... among those alike */
	int			pid;			/* 0 while it starts */
	bool		stop;			/* it was asked to go */
	TimestampTz started_at;
	int64		memory;			/* bytes allocated, as it last said */

	/* of a free entry: who had it last, as long as nobody else has */
	EsWorkerKind left;			/* ES_FREE: nobody, or it failed */
} Worker;

typedef struct Workers
{
	LWLock	   *lock;
	ConditionVariable gone;		/* told when an entry becomes free */
	Worker		worker[FLEXIBLE_ARRAY_MEMBER];
} Workers;

static Workers *shared = NULL;

/* This process's entry; set once by es_worker_begin(). */
static int	me = -1;

/* Handles of the processes that this one started, by entry. */
static BackgroundWorkerHandle **handles = NULL;

static const char *const kind_names[] = {
	"free", "es launcher", "es scheduler", "es projector"
};
static const char *const main_functions[] = {
	NULL, "es_launcher_main", "es_scheduler_main", "es_projector_main"
};

/* Lives shorter than this count as failures. */
#define SHORT_LIFE_MS		10000
#define FIRST_RESTART_MS	1000
#define LAST_RESTART_MS		60000

static Size
shmem_size(void)
{
	return add_size(offsetof(Workers, worker),
					mul_size(max_worker_processes, sizeof(Worker)));
}

void
es_shell_shmem_request(void)
{
	RequestAddinShmemSpace(shmem_size());
	RequestNamedLWLockTranche("es workers", 1);
}

void
es_shell_shmem_init(void)
{
	bool		found;

	shared = ShmemInitStruct("es workers", shmem_size(), &found);
	if (found)
		return;
	memset(shared, 0, shmem_size());
	shared->lock = &GetNamedLWLockTranche("es workers")->lock;
	ConditionVariableInit(&shared->gone);
}

/*
 * Free an entry.  The caller holds the lock.
 */
static void
free_entry(Worker *w)
{
	w->left = ES_FREE;
	w->kind = ES_FREE;
	w->generation++;
	w->pid = 0;
	w->stop = false;
}

/*
 * Reserve an entry, or return -1 where all are in use or there is one like it.
 */
static int
reserve_entry(EsWorkerKind kind, Oid database, Oid role, int number)
{
	int			entry = -1;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < max_worker_processes; i++)
	{
		Worker	   *w = &shared->worker[i];

		if (w->kind == kind && w->database == database && w->role == role &&
			w->number == number)
		{
			entry = -1;
			break;
		}
		if (w->kind == ES_FREE && entry < 0)
			entry = i;
		/* How this one ends is what counts from now on. */
		if (w->left == kind && w->database == database && w->role == role &&
			w->number == number)
			w->left = ES_FREE;
	}
	if (entry >= 0)
	{
		Worker	   *w = &shared->worker[entry];

		w->kind = kind;
		w->database = database;
		w->role = role;
		w->number = number;
		w->started_at = GetCurrentTimestamp();
	}
	LWLockRelease(shared->lock);
	return entry;
}

/*
 * Free an entry and tell who waits for that; in_order says that its process
 * ended because it had to and not because it failed.
 */
static void
release_entry(int entry, bool in_order)
{
	Worker	   *w = &shared->worker[entry];
	EsWorkerKind kind = w->kind;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	free_entry(w);
	if (in_order)
		w->left = kind;
	LWLockRelease(shared->lock);
	ConditionVariableBroadcast(&shared->gone);
}

/*
 * At exit: the entry becomes free, nobody wakes us any more, and who has to
 * replace us looks.  The server tells only the very process that started us,
 * which may have been replaced itself.
 */
static void
leave(int code, Datum arg)
{
	Worker		w = shared->worker[me];

	es_sleeper_set(me, InvalidOid);
	if (w.kind == ES_LAUNCHER)
		es_launcher_set(false);
	if (w.kind == ES_SCHEDULER)
		es_serve_database(false);
	release_entry(me, code == 0 || w.stop);
	if (w.kind == ES_SCHEDULER)
		es_wake_launcher();
	if (w.kind == ES_PROJECTOR)
		es_wake_database(w.database, true);
}

/*
 * Take the entry that es_worker_start() reserved; go away where it was given
 * up or the worker was asked to stop before it came up.
 */
static void
attach(int entry, uint32 generation)
{
	Worker	   *w = &shared->worker[entry];
	bool		mine;
	bool		wanted;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	mine = w->generation == generation;
	wanted = mine && !w->stop;
	if (wanted)
		w->pid = MyProcPid;
	LWLockRelease(shared->lock);
	if (wanted)
	{
		/* Those alike share the work out anew. */
		es_wake_database(w->database, true);
		return;
	}
	if (mine)
		release_entry(entry, true);
	proc_exit(0);
}

/*
 * Begin the life of a worker: signals, its entry in the table, its clean-up.
 * Returns the database to serve, and the role.
 */
Oid
es_worker_begin(EsWorkerKind kind, Datum arg, Oid *role)
{
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, die);
	BackgroundWorkerUnblockSignals();

	if (kind == ES_LAUNCHER)
	{
		me = reserve_entry(ES_LAUNCHER, InvalidOid, InvalidOid, 0);
		if (me < 0)
			elog(ERROR, "no free entry for the es launcher");
		shared->worker[me].pid = MyProcPid;
		es_launcher_set(true);
	}
	else
	{
		uint32		generation;

		memcpy(&generation, MyBgworkerEntry->bgw_extra, sizeof(generation));
		me = DatumGetInt32(arg);
		attach(me, generation);
	}
	before_shmem_exit(leave, (Datum) 0);
	if (kind != ES_LAUNCHER)
		es_sleeper_set(me, shared->worker[me].database);
	if (role)
		*role = shared->worker[me].role;
	return shared->worker[me].database;
}

/*
 * Settings that a worker has whatever its database and role say: what it does
 * relies on them, or would be cut short.
 */
void
es_worker_set_defaults(void)
{
	static const char *const settings[][2] = {
		{"default_transaction_isolation", "read committed"},
		{"default_transaction_read_only", "off"},
		{"default_transaction_deferrable", "off"},
		{"idle_in_transaction_session_timeout", "0"},
		{"idle_session_timeout", "0"},
		{"lock_timeout", "0"},
		{"statement_timeout", "0"},
	};

	for (int i = 0; i < (int) lengthof(settings); i++)
		SetConfigOption(settings[i][0], settings[i][1],
						PGC_SUSET, PGC_S_OVERRIDE);
}

/*
 * Commit this transaction as durably as the server's default is, whatever this
 * worker's is.
 */
void
es_worker_commit_durably(void)
{
	(void) set_config_option("synchronous_commit", "on",
							 PGC_SUSET, PGC_S_OVERRIDE,
							 GUC_ACTION_LOCAL, true, 0, false);
}

bool
es_worker_should_stop(void)
{
	return shared->worker[me].stop;
}

void
es_worker_listen(bool listen)
{
	es_sleeper_listen(me, listen);
}

/*
 * Sleep until the latch is set or the time is up; then see to interrupts and
 * the configuration.
 */
void
es_worker_sleep(long timeout_ms)
{
	static uint32 wait_event = 0;

	if (wait_event == 0)
		wait_event = ES_WAIT_EVENT("EsWorker");
	(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH,
					 timeout_ms, wait_event);
	ResetLatch(MyLatch);
	/* Between two statements there is nothing that could be cancelled. */
	QueryCancelPending = false;
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
}

/*
 * Milliseconds from now to a time, at least 0 and at most a heartbeat.
 */
long
es_worker_ms_until(TimestampTz when)
{
	long		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), when);

	return Min(ms, ES_HEARTBEAT_MS);
}

/*
 * The same to a time that was set "longest" ahead of the clock or less.  One
 * that is further away is due: the clock was set back since.
 */
long
es_worker_ms_left(TimestampTz when, long longest)
{
	long		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), when);

	return ms > longest ? 0 : ms;
}

/*
 * Say how much memory this worker has.
 */
void
es_worker_report_memory(void)
{
	shared->worker[me].memory = (int64) MemoryContextMemAllocated(TopMemoryContext, true);
}

/*
 * Say in pg_stat_activity that this worker is idle, and how things are.
 */
void
es_worker_report_idle(const char *activity)
{
	pgstat_report_activity(STATE_RUNNING, activity);
	pgstat_report_activity(STATE_IDLE, NULL);
	es_worker_report_memory();
}

/*
 * A number as people read it, with a comma at each thousand, in the current
 * context.
 */
char *
es_worker_number(int64 n)
{
	char		digits[32];
	char	   *text = palloc(48);
	char	   *out = text;
	int			len = snprintf(digits, sizeof(digits), INT64_FORMAT, n);

	for (int i = 0; i < len; i++)
	{
		if (i > 0 && digits[i - 1] != '-' && (len - i) % 3 == 0)
			*out++ = ',';
		*out++ = digits[i];
	}
	*out = '\0';
	return text;
}

/*
 * Register the process of a reserved entry; false where the server has no
 * room for another worker.
 */
static bool
register_process(int entry, EsWorkerKind kind)
{
	BackgroundWorker worker = {0};
	uint32		generation = shared->worker[entry].generation;
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	bool		registered;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	strlcpy(worker.bgw_library_name, "es", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, main_functions[kind], BGW_MAXLEN);
	strlcpy(worker.bgw_name, kind_names[kind], BGW_MAXLEN);
	strlcpy(worker.bgw_type, kind_names[kind], BGW_MAXLEN);
	worker.bgw_main_arg = Int32GetDatum(entry);
	memcpy(worker.bgw_extra, &generation, sizeof(generation));
	worker.bgw_notify_pid = MyProcPid;

	if (handles == NULL)
		handles = palloc0(sizeof(BackgroundWorkerHandle *) * max_worker_processes);
	if (handles[entry])
		pfree(handles[entry]);
	handles[entry] = NULL;
	registered = RegisterDynamicBackgroundWorker(&worker, &handles[entry]);
	MemoryContextSwitchTo(old);
	return registered;
}

/*
 * Start a worker.  False where there is one already, or no room for it, which
 * is said once in the log.
 */
bool
es_worker_start(EsWorkerKind kind, Oid database, Oid role, int number)
{
	static bool complained = false;
	int			entry = reserve_entry(kind, database, role, number);

	if (entry >= 0 && register_process(entry, kind))
	{
		complained = false;
		return true;
	}
	if (entry >= 0)
		release_entry(entry, false);
	if (!complained && !es_worker_exists(kind, database, role, number))
	{
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("could not start an %s: no background worker is free",
						kind_names[kind]),
				 errhint("Raise max_worker_processes, which is %d; es needs one for the cluster, one for each database, and es.max_projectors for the projections of each.",
						 max_worker_processes)));
		complained = true;
	}
	return false;
}

/*
 * Whether such a worker runs or starts.
 */
bool
es_worker_exists(EsWorkerKind kind, Oid database, Oid role, int number)
{
	bool		exists = false;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < max_worker_processes && !exists; i++)
	{
		Worker	   *w = &shared->worker[i];

		exists = w->kind == kind && w->database == database &&
			w->role == role && w->number == number;
	}
	LWLockRelease(shared->lock);
	return exists;
}

/*
 * How many workers like this one run, and how many of them come before it: by
 * this they share out the work.
 */
int
es_worker_rank(int *count)
{
	const Worker *self = &shared->worker[me];
	int			rank = 0;

	*count = 0;
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < max_worker_processes; i++)
	{
		Worker	   *w = &shared->worker[i];

		if (w->kind != self->kind || w->database != self->database ||
			w->role != self->role || w->pid == 0 || w->stop)
			continue;
		(*count)++;
		if (w->number < self->number)
			rank++;
	}
	LWLockRelease(shared->lock);
	*count = Max(*count, 1);
	return rank;
}

/*
 * Ask the workers of a role whose number is "keep" or higher to stop when they
 * have done what they do.
 */
void
es_workers_dismiss(EsWorkerKind kind, Oid database, Oid role, int keep)
{
	bool		any = false;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < max_worker_processes; i++)
	{
		Worker	   *w = &shared->worker[i];

		if (w->kind != kind || w->database != database || w->role != role ||
			w->number < keep || w->stop)
			continue;
		w->stop = true;
		any = true;
	}
	LWLockRelease(shared->lock);
	if (any)
		es_wake_database(database, true);
}

/*
 * Whether the process of an entry that has not attached never will.
 */
static bool
never_came_up(int entry)
{
	pid_t		pid;

	return handles == NULL || handles[entry] == NULL ||
		GetBackgroundWorkerPid(handles[entry], &pid) == BGWH_STOPPED;
}

/*
 * Free the entries of workers of a kind (and database, if given) that never
 * came up.  Only for who starts such workers: those it did not start itself
 * were started by a predecessor that is gone.
 */
void
es_workers_reap(EsWorkerKind kind, Oid database)
{
	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < max_worker_processes; i++)
	{
		Worker	   *w = &shared->worker[i];

		if (w->kind == kind && w->pid == 0 &&
			(!OidIsValid(database) || w->database == database) &&
			never_came_up(i))
			free_entry(w);
	}
	LWLockRelease(shared->lock);
}

/*
 * Ask the workers of a database to stop; those that are in the middle of
 * something are terminated at the second call.  Returns how many there are.
 */
static int
ask_to_stop(Oid database, bool terminate)
{
	int			n = 0;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	for (int i = 0; i < max_worker_processes; i++)
	{
		Worker	   *w = &shared->worker[i];

		if (w->kind == ES_FREE || w->kind == ES_LAUNCHER || w->database != database)
			continue;
		if (terminate && w->pid == 0)
		{
			/* It may never come up, and will not be let in if it does. */
			free_entry(w);
			continue;
		}
		w->stop = true;
		n++;
		if (terminate)
			kill(w->pid, SIGTERM);
	}
	LWLockRelease(shared->lock);
	return n;
}

/*
 * Stop the workers of a database and wait until they are gone.  Returns whether
 * there were any.
 */
bool
es_workers_stop(Oid database)
{
	bool		terminate = false;
	bool		any = false;

	ConditionVariablePrepareToSleep(&shared->gone);
	while (ask_to_stop(database, terminate) > 0)
	{
		any = true;
		es_wake_database(database, true);
		es_wake_launcher();
		terminate = ConditionVariableTimedSleep(&shared->gone, 500,
												ES_WAIT_EVENT("EsWorkersStop"));
	}
	ConditionVariableCancelSleep();
	return any;
}

/*
 * Whether the last worker of this kind, database and role ended in order, as
 * far as that is still known.
 */
static bool
left_in_order(EsWorkerKind kind, Oid database, Oid role, int number)
{
	bool		left = false;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < max_worker_processes && !left; i++)
	{
		Worker	   *w = &shared->worker[i];

		left = w->kind == ES_FREE && w->left == kind &&
			w->database == database && w->role == role && w->number == number;
	}
	LWLockRelease(shared->lock);
	return left;
}

static EsRestart *
restart_of(List **restarts, Oid key, int number)
{
	EsRestart  *r;
	ListCell   *cell;
	MemoryContext old;

	foreach(cell, *restarts)
	{
		r = (EsRestart *) lfirst(cell);
		if (r->key == key && r->number == number)
			return r;
	}
	old = MemoryContextSwitchTo(TopMemoryContext);
	r = palloc0(sizeof(EsRestart));
	r->key = key;
	r->number = number;
	*restarts = lappend(*restarts, r);
	MemoryContextSwitchTo(old);
	return r;
}

/*
 * Whether a worker that does not run may be started now; where it is not, the
 * timeout is lowered to when it may be.  One that keeps failing is started at
 * growing intervals.  The restarts are kept by what tells the caller's workers
 * apart: the role, or else the database.
 */
bool
es_restart_due(List **restarts, EsWorkerKind kind, Oid database, Oid role,
			   int number, long *timeout_ms)
{
	EsRestart  *r = restart_of(restarts, OidIsValid(role) ? role : database,
							   number);
	TimestampTz now = GetCurrentTimestamp();
	long		ms;

	if (left_in_order(kind, database, role, number))
		r->started_at = r->not_before = 0;
	ms = es_worker_ms_left(r->not_before, LAST_RESTART_MS);
	if (ms > 0)
	{
		*timeout_ms = Min(*timeout_ms, ms);
		return false;
	}
	if (r->started_at != 0 &&
		TimestampDifferenceMilliseconds(r->started_at, now) < SHORT_LIFE_MS + LAST_RESTART_MS)
		r->failures++;
	else
		r->failures = 0;
	ms = r->failures > 6 ? LAST_RESTART_MS : Min(FIRST_RESTART_MS << r->failures, LAST_RESTART_MS);
	r->started_at = now;
	r->not_before = TimestampTzPlusMilliseconds(now, ms);
	return true;
}

/*
 * A worker ended because it was not needed any more: the next start is no
 * restart.
 */
void
es_restart_forget(List **restarts, Oid key, int number)
{
	EsRestart  *r = restart_of(restarts, key, number);

	*restarts = list_delete_ptr(*restarts, r);
	pfree(r);
}

/*
 * es.stat_worker(): the launcher and the workers of this database.
 */
Datum
es_stat_worker(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	(void) es_database();
	InitMaterializedSRF(fcinfo, 0);
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < max_worker_processes; i++)
	{
		Worker	   *w = &shared->worker[i];
		Datum		values[6];
		bool		nulls[6] = {false};

		if (w->kind == ES_FREE || w->pid == 0 ||
			(w->database != MyDatabaseId && w->kind != ES_LAUNCHER))
			continue;
		values[0] = Int32GetDatum(w->pid);
		values[1] = CStringGetTextDatum(kind_names[w->kind] + strlen("es "));
		values[2] = ObjectIdGetDatum(w->role);
		nulls[2] = !OidIsValid(w->role);
		values[3] = Int32GetDatum(w->number);
		values[4] = TimestampTzGetDatum(w->started_at);
		values[5] = Int64GetDatum(w->memory);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	LWLockRelease(shared->lock);
	return (Datum) 0;
}
