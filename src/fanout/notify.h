/*-------------------------------------------------------------------------
 * notify.h
 *	  Announcing news with NOTIFY.
 *-------------------------------------------------------------------------
 */
#ifndef ES_FANOUT_NOTIFY_H
#define ES_FANOUT_NOTIFY_H

extern void es_notify_settled(int64 settled);

#endif							/* ES_FANOUT_NOTIFY_H */
