/*-------------------------------------------------------------------------
 * watermark.h
 *	  Handing out positions, and the settled position.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_WATERMARK_H
#define ES_STORE_WATERMARK_H

#include "storage/condition_variable.h"
#include "storage/lwlock.h"
#include "storage/spin.h"

/*
 * What the cluster knows of the log of one database.  An entry is made at
 * first use and stays until the database is dropped.
 */
typedef struct EsDatabase
{
	Oid			oid;			/* InvalidOid: the entry is free */
	slock_t		mutex;			/* protects the counter: the next three */
	Oid			sequence;		/* whose positions it hands out */
	int64		next;			/* the next position to hand out */
	int64		bound;			/* the last one that the sequence covers */
	LWLock	   *lock;			/* held to move the sequence */
	pg_atomic_uint32 wanted;	/* a scheduler should run here */
	pg_atomic_uint32 served;	/* a scheduler runs here */
	pg_atomic_uint32 waiters;	/* sessions in es_wait() */
	pg_atomic_uint64 changes;	/* of what the workers go by */
	pg_atomic_uint64 timer_changes; /* of scheduled commands */
	ConditionVariable progress; /* told when a projection has applied */
	pg_atomic_uint32 watched_changes;	/* watched read models have changed */
	ConditionVariable news;		/* told when the settled position has moved */
} EsDatabase;

extern void es_watermark_shmem_request(void);
extern void es_watermark_shmem_init(void);
extern void es_watermark_init(void);

extern EsDatabase *es_database(void);
extern int	es_databases_wanted(Oid *databases, int max);
extern bool es_want_database(Oid database, bool wanted);
extern void es_serve_database(bool served);
extern bool es_database_is_served(Oid database);
extern void es_forget_database(Oid database);

extern int64 es_take_positions(int64 count);
extern int64 es_last_position(void);
extern int64 es_settled_position(void);
extern int64 es_settled_peek(void);
extern void es_settled_record(int64 position);
extern int64 es_first_own_position(void);
extern void es_wake_at_commit(void);
extern void es_wake_at_drop(void);
extern void es_news_at_commit(void);
extern uint64 es_changes(void);
extern void es_timers_wake_at_commit(void);
extern uint64 es_timer_changes(void);

#endif							/* ES_STORE_WATERMARK_H */
