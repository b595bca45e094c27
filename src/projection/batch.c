/*-------------------------------------------------------------------------
 * batch.c
 *	  Which events come next: the range of positions of the next batch.
 *
 * A batch is a range of positions and not a number of events, so that it can
 * be found without reading it.  A projection that names categories jumps over
 * the stretches of the log that hold none of them, by way of the index on
 * (category, position).
 *
 * After a failure the range is halved until the one event that fails is alone
 * in it: of a range (after, suspect_to] that fails, the first half is tried;
 * where that fails it is the new range, where it passes the rest is.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/visibilitymap.h"
#include "catalog.h"
#include "es.h"
#include "executor/executor.h"
#include "guc.h"
#include "miscadmin.h"
#include "projection/batch.h"
#include "storage/bufmgr.h"
#include "store/scan.h"
#include "store/table.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/*
 * Two keys for the positions behind "after" up to "to", in a column of an index.
 */
static void
position_keys(ScanKey keys, AttrNumber column, int64 after, int64 to)
{
	ScanKeyInit(&keys[0], column, BTGreaterStrategyNumber, F_INT8GT,
				Int64GetDatum(after));
	ScanKeyInit(&keys[1], column, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum(to));
}

/*
 * The position of the first event of a category behind "after", or a position
 * behind "settled" where there is none.  All that is settled is committed or
 * aborted, so "committed at this instant" is what any snapshot sees.
 */
static int64
first_of_category(Relation rel, TupleTableSlot *slot, text *category,
				  int64 after, int64 settled)
{
	ScanKeyData keys[3];
	bool		isnull;

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(category));
	position_keys(&keys[1], 2, after, settled);
	if (!es_index_find(rel, es_catalog()->event_category, keys, 3,
					   ForwardScanDirection, slot))
		return settled + 1;
	return DatumGetInt64(slot_getattr(slot, 1, &isnull));
}

/*
 * The same of all events: gaps can be long, a restart leaves one of some thousand
 * positions.
 */
static int64
first_of_all(Relation rel, TupleTableSlot *slot, int64 after, int64 settled)
{
	ScanKeyData keys[2];
	bool		isnull;

	position_keys(keys, 1, after, settled);
	if (!es_index_find(rel, es_catalog()->event_key, keys, 2,
					   ForwardScanDirection, slot))
		return settled + 1;
	return DatumGetInt64(slot_getattr(slot, 1, &isnull));
}

/*
 * The position of the first event of the projection's categories, or one
 * behind "settled" where there is none.
 */
static int64
first_position(const EsProjection *p, int64 settled)
{
	Relation	rel = table_open(es_catalog()->event, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	int64		first = settled + 1;

	if (p->filter.categories == NULL)
		first = first_of_all(rel, slot, p->position, settled);
	for (int i = 0; i < p->filter.ncategories; i++)
	{
		int64		candidate = first_of_category(rel, slot,
												  p->filter.categories[i],
												  p->position, settled);

		first = Min(first, candidate);
	}
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return first;
}

/*
 * Whether a projection counts as far behind, as a rebuild always does.
 */
bool
es_is_far_behind(const EsProjection *p)
{
	return p->rebuild > 0 || p->catching_up;
}

/*
 * The size of the batches of a projection that is not far behind.
 */
int
es_batch_size_of(const EsProjection *p)
{
	return p->batch_size > 0 ? p->batch_size : es_batch_size;
}

/*
 * How many positions a batch has: where there is much to do and the projection
 * says nothing else, as many as the settings and the worker allow.
 */
static int64
size_of_batch(const EsProjection *p)
{
	int64		size = es_batch_size_of(p);

	if (p->batch_size == 0 && es_is_far_behind(p))
		size = Max(es_max_batch_size, es_batch_size);
	return p->limit > 0 ? Min(size, p->limit) : size;
}

/*
 * The next batch of a projection; to == after where there is none.
 */
EsBatch
es_batch_next(const EsProjection *p, int64 settled)
{
	int64		size = size_of_batch(p);
	int64		first;
	EsBatch		batch = {p->position, p->position, true};

	if (settled <= p->position)
		return batch;
	if (p->suspect_to > p->position)
	{
		batch.to = p->position + Max((p->suspect_to - p->position) / 2, 1);
		batch.empty = false;
		return batch;
	}
	/* What fits into one batch needs no look for the gaps in it. */
	if (p->filter.categories == NULL && settled - p->position <= size)
		first = p->position + 1;
	else
		first = first_position(p, settled);
	batch.empty = first > settled;
	if (!batch.empty)
		batch.after = first - 1;
	batch.to = batch.empty || settled - batch.after <= size
		? settled : batch.after + size;
	return batch;
}

/*
 * How many events are in a range of the log.  As in an index-only scan, rows on
 * pages that are visible to everybody are counted without looking at them.
 */
static int64
count_all(int64 after, int64 to)
{
	Relation	rel = table_open(es_catalog()->event, AccessShareLock);
	Relation	index = index_open(es_catalog()->event_key, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	IndexScanDesc scan = es_index_beginscan(rel, index, GetActiveSnapshot(), 2);
	Buffer		visibility = InvalidBuffer;
	ItemPointer tid;
	ScanKeyData keys[2];
	int64		count = 0;

	position_keys(keys, 1, after, to);
	index_rescan(scan, keys, 2, NULL, 0);
	while ((tid = index_getnext_tid(scan, ForwardScanDirection)) != NULL)
	{
		CHECK_FOR_INTERRUPTS();
		if (VM_ALL_VISIBLE(rel, ItemPointerGetBlockNumber(tid), &visibility) ||
			index_fetch_heap(scan, slot))
			count++;
	}
	if (BufferIsValid(visibility))
		ReleaseBuffer(visibility);
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(rel, AccessShareLock);
	return count;
}

/*
 * The same of those that pass a filter.
 */
static int64
count_filtered(const EsFilter *filter, int64 after, int64 to)
{
	EsEventScan scan;
	int64		count = 0;

	es_event_scan_begin(&scan, filter, after, to);
	while (es_event_scan_next(&scan) != NULL)
		count++;
	es_event_scan_end(&scan);
	return count;
}

/*
 * Whether there is an event in a batch.  The query is not run over none, of which
 * sum() makes a NULL.
 */
bool
es_batch_has_any(const EsProjection *p, const EsBatch *batch)
{
	EsEventScan scan;
	bool		any;

	es_event_scan_begin(&scan, p->filtered ? &p->filter : NULL,
						batch->after, batch->to);
	any = es_event_scan_next(&scan) != NULL;
	es_event_scan_end(&scan);
	return any;
}

/*
 * How many events are in a batch that was applied.  Mostly the query has looked
 * at each position; what it has not, such as gaps, has to be looked up.
 */
int64
es_batch_count(const EsProjection *p, const EsBatch *batch, const EsBatchSeen *seen)
{
	if (seen->nlooked_at == batch->to - batch->after)
		return seen->nevents;
	return p->filtered ? count_filtered(&p->filter, batch->after, batch->to)
		: count_all(batch->after, batch->to);
}
