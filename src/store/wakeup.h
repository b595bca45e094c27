/*-------------------------------------------------------------------------
 * wakeup.h
 *	  Waking the workers of a database when there is something new.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_WAKEUP_H
#define ES_STORE_WAKEUP_H

extern void es_wakeup_shmem_request(void);
extern void es_wakeup_shmem_init(void);

extern void es_sleeper_set(int sleeper, Oid database);
extern void es_sleeper_listen(int sleeper, bool listen);
extern void es_launcher_set(bool running);
extern void es_wake_database(Oid database, bool even_if_busy);
extern void es_wake_launcher(void);

#endif							/* ES_STORE_WAKEUP_H */
