/*-------------------------------------------------------------------------
 * registry.h
 *	  Projections as they are defined.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_REGISTRY_H
#define ES_PROJECTION_REGISTRY_H

#include "executor/spi.h"
#include "nodes/pg_list.h"
#include "store/read.h"
#include "utils/timestamp.h"

/*
 * A projection as its worker holds it.
 */
typedef struct EsProjection
{
	char	   *name;
	char	   *query;
	char	   *search_path;
	EsFilter	filter;
	bool		filtered;
	int			batch_size;

	int64		position;		/* the checkpoint, as last seen */
	int64		attempt_after;	/* the batch tried last */
	int64		attempt_to;
	int64		suspect_to;		/* some event up to here fails; or 0 */
	int			retries;		/* failures in a row of what stops it */
	TimestampTz retry_at;		/* not before then; 0 at once */
	TimestampTz served_at;		/* when its last batch began */

	SPIPlanPtr	plan;
	int			plan_magnitude; /* of the batch it was planned for */
} EsProjection;

extern void es_projection_registry_init(void);
extern uint64 es_projections_generation(void);
extern List *es_projections_of(Oid owner);
extern List *es_projection_owners(void);

#endif							/* ES_PROJECTION_REGISTRY_H */
