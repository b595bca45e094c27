/*-------------------------------------------------------------------------
 * apply.h
 *	  Applying a batch of events to the read models of a projection.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_APPLY_H
#define ES_PROJECTION_APPLY_H

#include "es.h"
#include "projection/registry.h"

typedef enum EsApplied
{
	ES_APPLIED,					/* a batch; there may be more */
	ES_CAUGHT_UP,				/* nothing more up to the settled position */
	ES_GONE						/* the projection is not there any more */
} EsApplied;

extern EsApplied es_projection_apply(EsProjection *p);
extern void es_projection_forget_plan(EsProjection *p);
extern void es_projection_applied(EsProjection *p);
extern void es_projection_failed(EsProjection *p, ErrorData *error);
extern TimestampTz es_retry_time(TimestampTz failed_at, int retries);
ES_NORETURN extern void es_projection_missing(const char *name);

#endif							/* ES_PROJECTION_APPLY_H */
