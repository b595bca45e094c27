/*-------------------------------------------------------------------------
 * poison.h
 *	  What becomes of events that a projection cannot apply.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_POISON_H
#define ES_PROJECTION_POISON_H

#include "projection/batch.h"
#include "projection/registry.h"

extern bool es_error_is_transient(int sqlerrcode);
extern TimestampTz es_retry_time(TimestampTz failed_at, int retries);
extern void es_projection_failed(EsProjection *p, ErrorData *error);
extern void es_park_events(EsProjection *p, const EsBatch *batch);

#endif							/* ES_PROJECTION_POISON_H */
