/*-------------------------------------------------------------------------
 * read.h
 *	  Reading the log, and the range and filter that es_batch shows.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_READ_H
#define ES_STORE_READ_H

#include "executor/tuptable.h"
#include "fmgr.h"
#include "utils/array.h"

/* How a statement that returns rows of es.event begins. */
#define ES_EVENT_COLUMNS \
	"SELECT position, version, recorded_at, stream, category, type, payload, metadata FROM es.event "

/*
 * Which events es_batch lets through; NULL lists let all through.
 */
typedef struct EsFilter
{
	int			ncategories;
	text	  **categories;
	int			ntypes;
	text	  **types;
} EsFilter;

extern int64 es_count_argument(FunctionCallInfo fcinfo, int arg);
extern void es_filter_from_arrays(EsFilter *filter, ArrayType *categories,
								  ArrayType *types);
extern bool es_filter_passes(const EsFilter *filter, TupleTableSlot *event);
extern void es_batch_set(const EsFilter *filter, int64 after, int64 to);

#endif							/* ES_STORE_READ_H */
