/*-------------------------------------------------------------------------
 * merge.h
 *	  Shadow tables, and making tables what their shadows are.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_MERGE_H
#define ES_PROJECTION_MERGE_H

#include "projection/registry.h"

/*
 * Rows that a merge wrote.
 */
typedef struct EsMerged
{
	int64		inserted;
	int64		updated;
	int64		deleted;
} EsMerged;

extern void es_shadow_create(EsProjection *p);
extern void es_shadow_drop(int rebuild);
extern void es_shadow_check_untouched(const EsProjection *p);
extern void es_shadow_merge(EsProjection *p, EsMerged *merged);

#endif							/* ES_PROJECTION_MERGE_H */
