/*-------------------------------------------------------------------------
 * batch.h
 *	  Which events come next.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_BATCH_H
#define ES_PROJECTION_BATCH_H

#include "projection/registry.h"

/*
 * The events behind "after" up to "to"; empty says that none of them passes
 * the projection's filter.
 */
typedef struct EsBatch
{
	int64		after;
	int64		to;
	bool		empty;
} EsBatch;

extern bool es_is_far_behind(const EsProjection *p);
extern int	es_batch_size_of(const EsProjection *p);
extern EsBatch es_batch_next(const EsProjection *p, int64 settled);
extern bool es_batch_has_any(const EsProjection *p, const EsBatch *batch);
extern int64 es_batch_count(const EsProjection *p, const EsBatch *batch,
							const EsBatchSeen *seen);

#endif							/* ES_PROJECTION_BATCH_H */
