/*-------------------------------------------------------------------------
 * launcher.h
 *	  The process that starts a scheduler for each database with a log.
 *-------------------------------------------------------------------------
 */
#ifndef ES_WORKER_LAUNCHER_H
#define ES_WORKER_LAUNCHER_H

extern void es_launcher_register(void);

#endif							/* ES_WORKER_LAUNCHER_H */
