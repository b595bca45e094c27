/*-------------------------------------------------------------------------
 * pace.c
 *	  How large to make the batches of a projection that is far behind.
 *
 * Large batches are faster for SQL that folds many events into a row, and
 * slower for SQL whose sort no longer fits into work_mem, or that updates a row
 * again and again, whose dead versions can go after the commit only: which it
 * is, only trying tells.  So multiply the size as long as that is faster; where
 * it is not even once, divide; then stay.  The first batch is not counted: it
 * pays for plans and for reading the catalogs.
 *
 * A batch is one transaction, which holds its locks and its snapshot to the
 * end, and cannot be paused or cancelled before.  So the slice is short where
 * other projections of the worker wait, longer where readers of what is served
 * might, and longest for a rebuild, whose tables nobody sees.  That one is
 * given maintenance_work_mem too, so it tries a very large step first.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "es.h"
#include "guc.h"
#include "projection/batch.h"
#include "utils/timestamp.h"
#include "worker/pace.h"

#define SLICE_WAITED_FOR_MS	20
#define SLICE_SERVED_MS		1000
#define SLICE_REBUILD_MS	5000

/* What to multiply the best size so far by; each until it is no gain. */
static const double served_steps[] = {8, 0.25, 1};
static const double rebuild_steps[] = {128, 4, 0.25, 1};

/* A rate that is more by less than this may be chance. */
#define GAIN	1.05

/* The first, where others wait; and the least, however long it takes. */
#define FIRST_WAITED_FOR	1000
#define LEAST_SIZE	200

static double
step_of(const EsProjection *p)
{
	return (p->rebuild > 0 ? rebuild_steps : served_steps)[p->pace.stage];
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
	double		size = others_wait ? Min(FIRST_WAITED_FOR, es_batch_size) : es_batch_size;

	p->served_at = GetCurrentTimestamp();
	p->limit = 0;
	if (!es_is_far_behind(p))
	{
		memset(pace, 0, sizeof(*pace));
		return;
	}
	if (pace->rate > 0)
	{
		size = pace->size * step_of(p);
		size = Min(size, pace->rate * slice);
	}
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
	int64		us = GetCurrentTimestamp() - p->served_at;
	double		rate = size * 1000.0 / Max(us, 1);

	if (p->limit == 0 || size < p->limit)
		return;
	if (!pace->warm)
		pace->warm = true;
	else if (pace->rate == 0 || (size != pace->size && rate > GAIN * pace->rate))
	{
		pace->moved = pace->rate > 0;
		pace->size = (int) size;
		pace->rate = rate;
	}
	else if (size == pace->size || step_of(p) == 1)
		pace->rate = rate;
	else
		do
			pace->stage++;
		while (pace->moved && step_of(p) != 1);
}
