/*-------------------------------------------------------------------------
 * watch.h
 *	  Watching read models.
 *-------------------------------------------------------------------------
 */
#ifndef ES_FANOUT_WATCH_H
#define ES_FANOUT_WATCH_H

extern void es_watch_rebuilt(Oid relid);

#endif							/* ES_FANOUT_WATCH_H */
