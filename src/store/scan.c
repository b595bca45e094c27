/*-------------------------------------------------------------------------
 * scan.c
 *	  Going through a range of the log in its order.
 *
 * Straight from the indexes and without a planner, which might one day prefer
 * to sort the log.  With a list of categories there is one scan for each by
 * (category, position), and the lowest position of all is next: what lies
 * between is not read.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog.h"
#include "es.h"
#include "miscadmin.h"
#include "store/scan.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* The position of a cursor that has no more events. */
#define AT_END	PG_INT64_MAX

/*
 * Let a cursor stand on its next event.
 */
static void
advance(EsEventCursor *cursor)
{
	bool		isnull;

	cursor->position = AT_END;
	if (index_getnext_slot(cursor->scan, ForwardScanDirection, cursor->slot))
		cursor->position = DatumGetInt64(slot_getattr(cursor->slot,
													  ES_EVENT_POSITION, &isnull));
}

/*
 * Begin a cursor over a category (NULL: the whole log).
 */
static void
begin_cursor(EsEventScan *scan, EsEventCursor *cursor, text *category,
			 int64 after, int64 to)
{
	ScanKeyData keys[3];
	int			n = 0;
	AttrNumber	column = category ? 2 : 1;

	if (category)
		ScanKeyInit(&keys[n++], 1, BTEqualStrategyNumber, F_TEXTEQ,
					PointerGetDatum(category));
	ScanKeyInit(&keys[n++], column, BTGreaterStrategyNumber, F_INT8GT,
				Int64GetDatum(after));
	ScanKeyInit(&keys[n++], column, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum(to));
	cursor->slot = table_slot_create(scan->rel, NULL);
	cursor->scan = es_index_beginscan(scan->rel, scan->index,
									  GetActiveSnapshot(), n);
	index_rescan(cursor->scan, keys, n, NULL, 0);
	advance(cursor);
}

/*
 * Begin to go through the events behind "after" up to "to" that pass a filter
 * (NULL: all), as the active snapshot sees them.  The filter must outlive the
 * scan.
 */
void
es_event_scan_begin(EsEventScan *scan, const EsFilter *filter,
					int64 after, int64 to)
{
	bool		by_category = filter && filter->categories;

	scan->rel = table_open(es_catalog()->event, AccessShareLock);
	scan->index = index_open(by_category ? es_catalog()->event_category
							 : es_catalog()->event_key, AccessShareLock);
	scan->filter = filter;
	scan->last = after;
	scan->ncursors = by_category ? filter->ncategories : 1;
	scan->cursors = palloc(sizeof(EsEventCursor) * Max(scan->ncursors, 1));
	for (int i = 0; i < scan->ncursors; i++)
		begin_cursor(scan, &scan->cursors[i],
					 by_category ? filter->categories[i] : NULL, after, to);
}

/*
 * The cursor that stands on the lowest position behind the last one, or NULL.
 * A category that is listed twice has its events in two cursors.
 */
static EsEventCursor *
lowest(EsEventScan *scan)
{
	EsEventCursor *found = NULL;

	for (int i = 0; i < scan->ncursors; i++)
	{
		EsEventCursor *c = &scan->cursors[i];

		while (c->position <= scan->last)
			advance(c);
		if (c->position != AT_END && (found == NULL || c->position < found->position))
			found = c;
	}
	return found;
}

/*
 * The next event, valid until the next call, or NULL at the end.
 */
TupleTableSlot *
es_event_scan_next(EsEventScan *scan)
{
	EsEventCursor *c;

	while ((c = lowest(scan)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		scan->last = c->position;
		if (scan->filter == NULL || es_filter_passes(scan->filter, c->slot))
			return c->slot;
	}
	return NULL;
}

void
es_event_scan_end(EsEventScan *scan)
{
	for (int i = 0; i < scan->ncursors; i++)
	{
		index_endscan(scan->cursors[i].scan);
		ExecDropSingleTupleTableSlot(scan->cursors[i].slot);
	}
	index_close(scan->index, AccessShareLock);
	table_close(scan->rel, AccessShareLock);
}
