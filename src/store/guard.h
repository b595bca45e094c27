/*-------------------------------------------------------------------------
 * guard.h
 *	  Keeping the log append-only.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_GUARD_H
#define ES_STORE_GUARD_H

extern void es_guard_init(void);

#endif							/* ES_STORE_GUARD_H */
