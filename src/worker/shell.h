/*-------------------------------------------------------------------------
 * shell.h
 *	  What the background workers have in common.
 *-------------------------------------------------------------------------
 */
#ifndef ES_WORKER_SHELL_H
#define ES_WORKER_SHELL_H

#include "utils/timestamp.h"

typedef enum EsWorkerKind
{
	ES_FREE,
	ES_LAUNCHER,
	ES_SCHEDULER,
	ES_PROJECTOR
} EsWorkerKind;

/*
 * When a worker that ended may be started again.
 */
typedef struct EsRestart
{
	Oid			key;			/* its database or role */
	int			number;			/* among those of the same key */
	int			failures;		/* short lives in a row */
	TimestampTz started_at;
	TimestampTz not_before;
} EsRestart;

/* A worker that has nothing to do looks round this often. */
#define ES_HEARTBEAT_MS		60000

extern void es_shell_shmem_request(void);
extern void es_shell_shmem_init(void);

extern Oid	es_worker_begin(EsWorkerKind kind, Datum arg, Oid *role);
extern bool es_worker_should_stop(void);
extern void es_worker_listen(bool listen);
extern void es_worker_sleep(long timeout_ms);
extern long es_worker_ms_until(TimestampTz when);
extern long es_worker_ms_left(TimestampTz when, long longest);
extern void es_worker_report_memory(void);
extern void es_worker_report_idle(const char *activity);
extern char *es_worker_number(int64 n);
extern void es_worker_set_defaults(void);
extern void es_worker_commit_durably(void);

extern bool es_worker_start(EsWorkerKind kind, Oid database, Oid role,
							int number);
extern bool es_worker_exists(EsWorkerKind kind, Oid database, Oid role,
							 int number);
extern int	es_worker_rank(int *count);
extern void es_workers_dismiss(EsWorkerKind kind, Oid database, Oid role,
							   int keep);
extern void es_workers_reap(EsWorkerKind kind, Oid database);
extern bool es_workers_stop(Oid database);
extern bool es_restart_due(List **restarts, EsWorkerKind kind, Oid database,
						   Oid role, int number, long *timeout_ms);
extern void es_restart_forget(List **restarts, Oid key, int number);

#endif							/* ES_WORKER_SHELL_H */
