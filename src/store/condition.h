/*-------------------------------------------------------------------------
 * condition.h
 *	  Relying on no further event matching a query.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_CONDITION_H
#define ES_STORE_CONDITION_H

#include "store/lock.h"
#include "store/query.h"

extern void es_condition_lock_event(const EsQuery *query);
extern void es_condition_locks(const EsQuery *query, EsTagLocks *list);
extern void es_condition_check(const EsQuery *query, int64 after);
extern void es_condition_check_seen(const EsQuery *query, int64 after);

#endif							/* ES_STORE_CONDITION_H */
