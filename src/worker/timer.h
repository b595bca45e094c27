/*-------------------------------------------------------------------------
 * timer.h
 *	  Submitting a role's scheduled commands when they are due.
 *-------------------------------------------------------------------------
 */
#ifndef ES_WORKER_TIMER_H
#define ES_WORKER_TIMER_H

#include "utils/palloc.h"

extern void es_timers_run(Oid owner, MemoryContext context);
extern long es_timers_timeout(void);
extern bool es_timers_wanted(void);

#endif							/* ES_WORKER_TIMER_H */
