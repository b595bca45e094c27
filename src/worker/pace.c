/*-------------------------------------------------------------------------
 * pace.c
 *	  How large to make the batches of a projection that is far behind.
 *
 * Large batches are faster for SQL that folds many events into a row, and
 * slower for SQL whose sort no longer fits into work_mem: which it is, only
 * trying tells.  So go up in steps as long as a batch fits into a slice of time
 * at the rate of the best so far; keep a size if its rate is no worse, and
 * otherwise go back and try a quarter of it.
 *
 * A batch is one transaction, which holds its locks and its snapshot to the
 * end, and cannot be paused or cancelled before.  So the slice is short where
 * other projections of the worker wait, longer where readers of what is served
 * might, and longest for a rebuild, whose tables nobody sees.  That one is
 * given maintenance_work_mem too, so it goes up in one step.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "es.h"
#include "guc.h"
#include "utils/timestamp.h"
#include "worker/pace.h"

#define SLICE_WAITED_FOR_MS	20
#define SLICE_SERVED_MS		1000
#define SLICE_REBUILD_MS	5000

/* Times the best size so far. */
#define STEP	4

/* The first, where others wait; and the least, however long it takes. */
#define FIRST_WAITED_FOR	1000
#define LEAST_SIZE	200

/* A rate that is less by no more than this may be chance. */
#define NO_WORSE	0.9

bool
es_is_far_behind(const EsProjection *p)
{
	return p->rebuild > 0 || p->catching_up;
}

/*
 * Limit the next batch.
 */
void
es_pace_before(EsProjection *p, bool others_wait)
{
	EsPace	   *pace = &p->pace;
	double		slice = others_wait ? SLICE_WAITED_FOR_MS
		: p->rebuild > 0 ? SLICE_REBUILD_MS : SLICE_SERVED_MS;
	double		size;

	p->served_at = GetCurrentTimestamp();
	p->limit = 0;
	if (!es_is_far_behind(p))
	{
		memset(pace, 0, sizeof(*pace));
		return;
	}
	size = others_wait ? Min(FIRST_WAITED_FOR, es_batch_size) : es_batch_size;
	if (pace->rate > 0)
		size = pace->rate * slice;
	if (pace->rate > 0 && p->rebuild == 0)
		size = Min(size, STEP * (double) pace->size);
	if (pace->ceiling > 0)
		size = Min(size, pace->ceiling);
	p->limit = (int) Max(LEAST_SIZE, Min(size, es_max_batch_size));
}

/*
 * Learn from the batch that was applied, if it was as large as it could be.
 */
void
es_pace_after(EsProjection *p)
{
	EsPace	   *pace = &p->pace;
	int64		size = p->attempt_to - p->attempt_after;
	double		rate = size / (double)
		Max(TimestampDifferenceMilliseconds(p->served_at, GetCurrentTimestamp()), 1);

	if (p->limit == 0 || size < p->limit)
		return;
	if (size > pace->size && rate < NO_WORSE * pace->rate)
	{
		pace->ceiling = (int) Max(pace->size, size / 4);
		return;
	}
	pace->size = (int) size;
	pace->rate = rate;
}
