/*-------------------------------------------------------------------------
 * scan.h
 *	  Going through a range of the log in its order.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_SCAN_H
#define ES_STORE_SCAN_H

#include "access/relscan.h"
#include "executor/tuptable.h"
#include "store/read.h"
#include "utils/relcache.h"

/* The attributes of es.event, as slot_getattr() counts them. */
enum
{
	ES_EVENT_POSITION = 1,
	ES_EVENT_VERSION,
	ES_EVENT_RECORDED_AT,
	ES_EVENT_STREAM,
	ES_EVENT_CATEGORY,
	ES_EVENT_TYPE,
	ES_EVENT_PAYLOAD,
	ES_EVENT_METADATA,
	ES_EVENT_NATTS = ES_EVENT_METADATA
};

/* One index scan, of the whole log or of a category. */
typedef struct EsEventCursor
{
	IndexScanDesc scan;
	TupleTableSlot *slot;
	int64		position;		/* of the event in the slot */
} EsEventCursor;

typedef struct EsEventScan
{
	Relation	rel;
	Relation	index;
	const EsFilter *filter;		/* or NULL */
	int64		last;			/* the position returned last */
	int			ncursors;
	EsEventCursor *cursors;
} EsEventScan;

extern void es_event_scan_begin(EsEventScan *scan, const EsFilter *filter,
								int64 after, int64 to);
extern TupleTableSlot *es_event_scan_next(EsEventScan *scan);
extern void es_event_scan_end(EsEventScan *scan);

#endif							/* ES_STORE_SCAN_H */
