/*-------------------------------------------------------------------------
 * rebuild.h
 *	  Rebuilding read models while they go on being served.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_REBUILD_H
#define ES_PROJECTION_REBUILD_H

#include "projection/apply.h"
#include "projection/registry.h"

extern EsApplied es_rebuild_step(EsProjection *p);
extern bool es_rebuild_has_work(const EsProjection *p, int64 settled);
extern void es_rebuild_refuse_if_active(Datum name, const char *what);
extern void es_rebuild_cancel(Datum name);

#endif							/* ES_PROJECTION_REBUILD_H */
