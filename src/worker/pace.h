/*-------------------------------------------------------------------------
 * pace.h
 *	  How large to make the batches of a projection that is far behind.
 *-------------------------------------------------------------------------
 */
#ifndef ES_WORKER_PACE_H
#define ES_WORKER_PACE_H

#include "projection/registry.h"

extern void es_pace_before(EsProjection *p, bool others_wait);
extern void es_pace_after(EsProjection *p);

#endif
