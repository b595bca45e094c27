/*-------------------------------------------------------------------------
 * apply.h
 *	  Applying a batch of events to the read models of a projection.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_APPLY_H
#define ES_PROJECTION_APPLY_H

#include "es.h"
#include "projection/batch.h"
#include "projection/registry.h"

typedef enum EsApplied
{
	ES_APPLIED,					/* a batch; there may be more */
	ES_CAUGHT_UP,				/* nothing more up to the settled position */
	ES_BUSY,					/* somebody else holds the checkpoint */
	ES_STALE,					/* the definition is not this any more */
	ES_STEPPED					/* a step of a rebuild that is no batch */
} EsApplied;

extern EsApplied es_projection_apply(EsProjection *p);
extern EsApplied es_projection_take(EsProjection *p);
extern void es_projection_apply_batch(EsProjection *p, const EsBatch *batch,
									  int64 settled);
extern void es_projection_applied(EsProjection *p);

#endif							/* ES_PROJECTION_APPLY_H */
