/*-------------------------------------------------------------------------
 * wakeup.c
 *	  Waking the workers of a database when there is something new.
 *
 * A committing appender sets the latches of the workers of its database, and
 * only of those that listen: a worker that has just looked, and groups what
 * comes in the next milliseconds, is left alone, so that a stream of commits
 * costs neither signals nor context switches.
 *
 * No wake-up is lost, because each side writes before it reads:
 *
 *		appender	makes its news visible; barrier; reads "listening"
 *		worker		sets "listening"; barrier; looks for news; sleeps
 *
 * Whichever comes second sees what the other wrote.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "es.h"
#include "miscadmin.h"
#include "postmaster/bgworker_internals.h"
#include "store/wakeup.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/proc.h"
#include "storage/shmem.h"

typedef struct Sleeper
{
	Oid			database;		/* InvalidOid: nobody */
	int			procno;
	pg_atomic_uint32 listening;
} Sleeper;

typedef struct Sleepers
{
	pg_atomic_uint32 launcher;	/* procno + 1, or 0 */
	Sleeper		sleeper[FLEXIBLE_ARRAY_MEMBER];
} Sleepers;

static Sleepers *sleepers = NULL;

static Size
shmem_size(void)
{
	return add_size(offsetof(Sleepers, sleeper),
					mul_size(max_worker_processes, sizeof(Sleeper)));
}

void
es_wakeup_shmem_request(void)
{
	RequestAddinShmemSpace(shmem_size());
}

void
es_wakeup_shmem_init(void)
{
	bool		found;

	sleepers = ShmemInitStruct("es sleepers", shmem_size(), &found);
	if (found)
		return;
	memset(sleepers, 0, shmem_size());
	pg_atomic_init_u32(&sleepers->launcher, 0);
	for (int i = 0; i < max_worker_processes; i++)
		pg_atomic_init_u32(&sleepers->sleeper[i].listening, 0);
}

/*
 * Say that this process is worker number "sleeper", of "database"; InvalidOid
 * takes it back.
 */
void
es_sleeper_set(int sleeper, Oid database)
{
	Sleeper    *s = &sleepers->sleeper[sleeper];

	pg_atomic_write_u32(&s->listening, 0);
	s->procno = ES_MY_PROCNO;
	pg_write_barrier();
	s->database = database;
}

/*
 * Listen for news, or stop listening.  Look for news after this, not before.
 */
void
es_sleeper_listen(int sleeper, bool listen)
{
	pg_atomic_write_u32(&sleepers->sleeper[sleeper].listening, listen ? 1 : 0);
	pg_memory_barrier();
}

void
es_launcher_set(bool running)
{
	pg_atomic_write_u32(&sleepers->launcher, running ? ES_MY_PROCNO + 1 : 0);
}

/*
 * Set the latches of the workers of a database that listen, or of all.  A
 * latch of a process that has gone is set without harm.  Raises no error, so
 * that it can be called from the end of a transaction.
 */
void
es_wake_database(Oid database, bool even_if_busy)
{
	pg_memory_barrier();
	for (int i = 0; i < max_worker_processes; i++)
	{
		Sleeper    *s = &sleepers->sleeper[i];

		if (s->database == database &&
			(even_if_busy || pg_atomic_read_u32(&s->listening) != 0))
			SetLatch(&ProcGlobal->allProcs[s->procno].procLatch);
	}
}

void
es_wake_launcher(void)
{
	uint32		launcher = pg_atomic_read_u32(&sleepers->launcher);

	if (launcher != 0)
		SetLatch(&ProcGlobal->allProcs[launcher - 1].procLatch);
}
