/*-------------------------------------------------------------------------
 * run.h
 *	  Running the query of a projection over some events.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_RUN_H
#define ES_PROJECTION_RUN_H

#include "projection/registry.h"

extern void es_projection_run(EsProjection *p, const EsFilter *filter,
							  int64 after, int64 to, EsBatchSeen *seen,
							  bool restricted);
extern bool es_projection_try(EsProjection *p, const EsFilter *filter,
							  int64 after, int64 to, ErrorData **error);
extern void es_projection_forget_plan(EsProjection *p);

#endif							/* ES_PROJECTION_RUN_H */
