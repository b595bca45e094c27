/*-------------------------------------------------------------------------
 * lock.h
 *	  The locks of the log: streams, and tags with types.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_LOCK_H
#define ES_STORE_LOCK_H

#include "storage/lockdefs.h"

/*
 * Locks on tags, to be taken at once.  Zeroed it is empty.
 */
typedef struct EsTagLock
{
	uint64		key;
	LOCKMODE	mode;
} EsTagLock;

typedef struct EsTagLocks
{
	EsTagLock  *locks;
	int			n;
	int			size;
} EsTagLocks;

extern void es_lock_log(void);
extern bool es_log_was_refused(void);
extern bool es_lock_stream(const text *stream, bool wait);
extern void es_tag_locks_add(EsTagLocks *list, const text *tag,
							 const text *type, LOCKMODE mode);
extern void es_tag_locks_take(EsTagLocks *list);

#endif							/* ES_STORE_LOCK_H */
