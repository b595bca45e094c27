/*-------------------------------------------------------------------------
 * sync.h
 *	  Projections that are applied in the statement that appends.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_SYNC_H
#define ES_PROJECTION_SYNC_H

#include "projection/registry.h"

extern void es_sync_init(void);
extern bool es_projection_is_sync(Datum name);
extern void es_projection_make_sync(Datum name);
extern void es_projection_make_async(Datum name);
extern bool es_projection_catch_up(List *partitions, int64 target, TimestampTz deadline);

#endif							/* ES_PROJECTION_SYNC_H */
