/*-------------------------------------------------------------------------
 * read.h
 *	  Reading the log, and the range and filter that es_batch shows.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_READ_H
#define ES_STORE_READ_H

#include "executor/tuptable.h"
#include "fmgr.h"
#include "nodes/bitmapset.h"
#include "utils/array.h"

/* How a statement that returns rows of es.event begins. */
#define ES_EVENT_COLUMNS \
	"SELECT position, version, recorded_at, stream, category, type, payload, metadata FROM es.event "

/*
 * Which events es_batch lets through; an empty filter lets all through.
 */
typedef struct EsFilter
{
	int			ncategories;
	text	  **categories;		/* or NULL: of all */
	int			ntypes;
	text	  **types;			/* or NULL: of all */
	int			partitions;		/* 0 or 1: of all streams */
	int			partition;		/* else of those in this partition */
	text	   *stream;			/* of this stream alone, or NULL */
	int			nparked;
	text	  **parked;			/* of none of these streams; sorted */
	int			nskipped;
	int64	   *skipped;		/* at none of these positions; sorted */
} EsFilter;

/*
 * How many events of a range es_batch has shown, as far as somebody looked.
 */
typedef struct EsBatchSeen
{
	int64		after;
	int64		npositions;		/* in the range */
	int64		nlooked_at;		/* of these, that have an event */
	int64		nevents;		/* of these, that the filter let through */
	Bitmapset  *looked_at;
} EsBatchSeen;

/*
 * What es_batch shows.
 */
typedef struct EsBatchView
{
	const EsFilter *filter;		/* NULL: all events of the range */
	int64		after;
	int64		to;
	EsBatchSeen *seen;			/* where to count, or NULL */
} EsBatchView;

extern int64 es_count_argument(FunctionCallInfo fcinfo, int arg);
extern void es_filter_from_arrays(EsFilter *filter, ArrayType *categories,
								  ArrayType *types);
extern void es_filter_set_parked(EsFilter *filter, ArrayType *streams);
extern bool es_filter_takes(const EsFilter *filter, int64 position,
							const text *stream, const text *category,
							const text *type);
extern bool es_filter_passes(const EsFilter *filter, TupleTableSlot *event);
extern bool es_filter_is_parked(const EsFilter *filter, const text *stream);
extern EsBatchView es_batch_show(EsBatchView view);
extern void es_batch_seen_begin(EsBatchSeen *seen, int64 after, int64 to);

#endif							/* ES_STORE_READ_H */
