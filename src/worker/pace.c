/*-------------------------------------------------------------------------
 * pace.c
 *	  How large to make the batches of a projection that is far behind.
 *
 * Large batches are faster for SQL that folds many events into a row, and
 * slower for SQL whose sort no longer fits into work_mem, or that updates a row
 * again and again, whose dead versions can go after the commit only: which it
 * is, only trying tells.  So multiply the size as long as that is faster; where
 * it is not even once, divide; then stay, and try again once in a while.  The
 * first batch is not counted: it pays for plans and for reading the catalogs.
 *
 * Fast is what takes little time of the processor.  The time that passes is half
 * as much again whenever somebody else wants a processor, too, as the other
 * partitions of the projection do, and says more of them than of the size.
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
#include "utils/pg_rusage.h"
#include "utils/timestamp.h"
#include "worker/pace.h"

#define SLICE_WAITED_FOR_MS	20
#define SLICE_SERVED_MS		1000
#define SLICE_REBUILD_MS	5000

/* What to multiply the best size so far by; each until it is no gain. */
#define STAY	1
static const double served_steps[] = {8, 0.25, STAY};
static const double rebuild_steps[] = {128, 4, 0.25, STAY};

/* After so many batches all is tried anew; twice as many where it was no gain. */
#define BATCHES_BETWEEN	64

/* A rate that is more by less than this may be chance. */
#define GAIN	1.05

/* When the batch began. */
static PGRUsage began;

/* The first, where others wait; and the least, however long it takes. */
#define FIRST_WAITED_FOR	1000
#define LEAST_SIZE	200

static double
ms_between(const struct timeval *from, const struct timeval *to)
{
	return (to->tv_sec - from->tv_sec) * 1e3 + (to->tv_usec - from->tv_usec) / 1e3;
}

/*
 * How long the batch took, and how long the processor.
 */
static void
time_taken(double *ms, double *cpu_ms)
{
	PGRUsage	now;

	pg_rusage_init(&now);
	*ms = ms_between(&began.tv, &now.tv);
	*cpu_ms = ms_between(&began.ru.ru_utime, &now.ru.ru_utime) +
		ms_between(&began.ru.ru_stime, &now.ru.ru_stime);
	*ms = Max(*ms, 0.001);
	*cpu_ms = Max(*cpu_ms, 0.001);
}

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
	pg_rusage_init(&began);
	if (pace->rate > 0)
	{
		size = pace->size * step_of(p);
		size = Min(size, pace->per_ms * slice);
	}
	p->limit = (int) Max(LEAST_SIZE, Min(size, es_max_batch_size));
}

/*
 * A size is faster than all before.
 */
static void
move(EsPace *pace, int size, double rate)
{
	pace->moved = pace->rate > 0;
	pace->size = size;
	pace->rate = rate;
	pace->stayed = 0;
	pace->patience = BATCHES_BETWEEN;
}

static void
next_stage(EsProjection *p)
{
	do
		p->pace.stage++;
	while (p->pace.moved && step_of(p) != STAY);
}

/*
 * A size was no gain.
 */
static void
go_on(EsProjection *p, int size, double rate)
{
	if (size > p->pace.size)
	{
		p->pace.larger = size;
		p->pace.larger_rate = rate;
	}
	next_stage(p);
}

/*
 * A batch was of the best size so far.
 *
 * The work changes while a read model fills, from inserts to updates: what was
 * measured before a larger size was tried makes that look slow.  So compare it
 * with what comes after, too.
 */
static void
stay(EsProjection *p, double rate)
{
	EsPace	   *pace = &p->pace;
	double		around = (pace->rate + rate) / 2;

	pace->rate = rate;
	if (step_of(p) != STAY)
	{
		/* It cannot be any larger, or smaller. */
		next_stage(p);
		return;
	}
	if (pace->larger_rate > GAIN * around)
	{
		move(pace, pace->larger, pace->larger_rate);
		pace->stage = 0;
	}
	else if (++pace->stayed >= pace->patience)
	{
		pace->stage = 0;
		pace->moved = false;
		pace->stayed = 0;
		pace->patience *= 2;
	}
	pace->larger_rate = 0;
}

/*
 * Learn from the batch that was applied, if it was as large as it could be.
 */
void
es_pace_after(EsProjection *p)
{
	EsPace	   *pace = &p->pace;
	int64		size = p->attempt_to - p->attempt_after;
	double		ms;
	double		cpu_ms;
	double		rate;

	if (p->limit == 0 || size < p->limit)
		return;
	time_taken(&ms, &cpu_ms);
	rate = size / cpu_ms;
	pace->per_ms = size / ms;
	if (!pace->warm)
		pace->warm = true;
	else if (pace->rate == 0 || (size != pace->size && rate > GAIN * pace->rate))
		move(pace, (int) size, rate);
	else if (size == pace->size || step_of(p) == STAY)
		stay(p, rate);
	else
		go_on(p, (int) size, rate);
}
