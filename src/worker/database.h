/*-------------------------------------------------------------------------
 * database.h
 *	  Keeping out of the way of commands on whole databases.
 *-------------------------------------------------------------------------
 */
#ifndef ES_WORKER_DATABASE_H
#define ES_WORKER_DATABASE_H

extern void es_database_hook_init(void);

#endif							/* ES_WORKER_DATABASE_H */
