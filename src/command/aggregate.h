/*-------------------------------------------------------------------------
 * aggregate.h
 *	  Aggregates: how the events of a category's streams become a state.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMMAND_AGGREGATE_H
#define ES_COMMAND_AGGREGATE_H

#include "command/call.h"
#include "utils/jsonb.h"

/*
 * An aggregate's definition.  Lives until the end of the transaction at least.
 */
typedef struct EsAggregate
{
	char	   *category;
	Oid			evolve;
	EsCallPlan *evolve_plan;
	Jsonb	   *initial_state;
	int			snapshot_every; /* events; 0: never */
	char	   *search_path;
	int64		identity;		/* of what evolve computes */
} EsAggregate;

extern EsAggregate *es_aggregate_of(const text *category);

#endif							/* ES_COMMAND_AGGREGATE_H */
