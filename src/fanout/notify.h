/*-------------------------------------------------------------------------
 * notify.h
 *	  Announcing news with NOTIFY.
 *-------------------------------------------------------------------------
 */
#ifndef ES_FANOUT_NOTIFY_H
#define ES_FANOUT_NOTIFY_H

extern int64 es_announced_position(void);
extern void es_announce(int64 after, int64 settled);
extern void es_announced_record(int64 settled);
extern void es_announce_mended(void);
extern void es_announce_failed(const ErrorData *error);

#endif							/* ES_FANOUT_NOTIFY_H */
