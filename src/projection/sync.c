/*-------------------------------------------------------------------------
 * sync.c
 *	  Projections that are applied in the statement that appends.
 *
 * One append takes consecutive positions, so the range it wrote holds events
 * of nobody else, and the query runs over just these.  It sees them, and what
 * it writes is committed with them; its error rejects them.
 *
 * There is no checkpoint to move, which would make all appenders queue at one
 * row: a synchronous projection has, at any time, applied exactly the events
 * that are visible.  What keeps that true when the mode changes is a lock on
 * es.event that excludes appenders, all of whom hold ROW EXCLUSIVE there from
 * before their first event to the end of their transaction:
 *
 *		async -> sync	apply what there is; exclude appenders; apply the rest,
 *						after which nothing is in flight; change the mode
 *		sync -> async	exclude appenders; put the checkpoint behind the last
 *						position handed out; change the mode
 *
 * Whoever appends first after that gets es.event's lock after the commit of
 * the change, and with it the invalidation that makes him read the mode anew,
 * with the latest snapshot whatever his isolation level.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "miscadmin.h"
#include "projection/apply.h"
#include "projection/define.h"
#include "projection/run.h"
#include "projection/sync.h"
#include "storage/lmgr.h"
#include "store/append.h"
#include "store/watermark.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/*
 * What this session knows of synchronous projections; changed by learn() and
 * after_append() alone.
 */
static struct
{
	uint64		generation;		/* of the definitions that these are */
	List	   *projections;
	MemoryContext context;
	int			depth;			/* of appends by projections by appends ... */
} state;

/*
 * How long appenders may have to wait for a projection to become synchronous,
 * up to the end of the batch that is being applied then.
 */
#define APPENDERS_WAIT_MS	1000

static EsStatement select_mode = ES_SQL(
	"SELECT mode = 'sync' FROM es.projection WHERE name = $1", 1, TEXTOID);
static EsStatement count_letters = ES_SQL(
	"SELECT count(*) FROM es.dead_letter WHERE projection = $1 AND rebuild = 0 AND status <> 'discarded'",
	1, TEXTOID);
static EsStatement set_sync = ES_SQL(
	"UPDATE es.projection SET mode = 'sync', paused = false WHERE name = $1", 1, TEXTOID);
static EsStatement set_async = ES_SQL(
	"WITH c AS (UPDATE es.checkpoint SET position = greatest(position, $2), catching_up = false "
	"  WHERE projection = $1 AND rebuild = 0) "
	"UPDATE es.projection SET mode = 'async' WHERE name = $1", 2, TEXTOID, INT8OID);

/*
 * Learn the projections anew where their definitions may have changed.  Not
 * while one of them runs, whose definition must stay; nor can its mode change
 * then, since this transaction has appended.
 */
static void
learn(void)
{
	uint64		generation = es_projections_generation();
	MemoryContext old;
	ListCell   *cell;

	if (state.generation == generation || state.depth > 0)
		return;
	foreach(cell, state.projections)
		es_projection_forget_plan((EsProjection *) lfirst(cell));
	state.projections = NIL;
	if (state.context == NULL)
		state.context = AllocSetContextCreate(TopMemoryContext, "es sync projections",
											  ALLOCSET_SMALL_SIZES);
	MemoryContextReset(state.context);
	old = MemoryContextSwitchTo(state.context);
	state.projections = es_sync_projections();
	MemoryContextSwitchTo(old);
	state.generation = generation;
}

/*
 * Whether any of the events is one for the projection.
 */
static bool
concerns(const EsProjection *p, const EsStream *stream, const EsEvent *events,
		 int nevents, int64 first)
{
	if (first + nevents - 1 <= p->start_after)
		return false;
	for (int i = 0; i < nevents; i++)
	{
		const EsStream *to = events[i].stream ? events[i].stream : stream;

		if (!p->filtered ||
			es_filter_takes(&p->filter, first + i, to->name, to->category,
							events[i].type))
			return true;
	}
	return false;
}

/*
 * Say in an error of the query what it means for the appender.
 */
static void
rethrow(const EsProjection *p, MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	FlushErrorState();
	if (error->detail == NULL)
		error->detail = psprintf("Synchronous projection \"%s\" could not apply the event, so it was not appended.",
								 p->name);
	else if (error->hint == NULL)
		error->hint = psprintf("Synchronous projection \"%s\" could not apply the event, so it was not appended.",
							   p->name);
	ReThrowError(error);
}

static void
apply(EsProjection *p, int64 after, int64 to)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		es_projection_run(p, p->filtered ? &p->filter : NULL,
						  Max(after, p->start_after), to, NULL, true);
	}
	PG_CATCH();
	{
		rethrow(p, context);
	}
	PG_END_TRY();
}

static void
after_append(const EsStream *stream, const EsEvent *events, int nevents,
			 int64 first)
{
	ListCell   *cell;

	learn();
	if (state.projections == NIL)
		return;
	check_stack_depth();
	state.depth++;
	PG_TRY();
	{
		foreach(cell, state.projections)
		{
			EsProjection *p = (EsProjection *) lfirst(cell);

			if (concerns(p, stream, events, nevents, first))
				apply(p, first - 1, first + nevents - 1);
		}
	}
	PG_FINALLY();
	{
		state.depth--;
	}
	PG_END_TRY();
}

void
es_sync_init(void)
{
	es_after_append = after_append;
}

bool
es_projection_is_sync(Datum name)
{
	bool		sync;
	bool		isnull;
	EsSpi		spi;

	es_spi_begin(&spi);
	sync = es_run(&select_mode, &name, NULL) == 1 &&
		DatumGetBool(es_spi_value(0, 1, &isnull));
	es_spi_end(&spi);
	return sync;
}

/*
 * Apply in this session, with the checkpoints locked, until all partitions are
 * at the target; false where another batch would have begun after the deadline.
 */
bool
es_projection_catch_up(List *partitions, int64 target, TimestampTz deadline)
{
	ListCell   *cell;

	foreach(cell, partitions)
	{
		EsProjection *p = (EsProjection *) lfirst(cell);

		while (p->position < target)
		{
			EsBatch		batch;

			CHECK_FOR_INTERRUPTS();
			if (GetCurrentTimestamp() > deadline)
				return false;
			/* However far behind: a batch is not interrupted by the deadline. */
			p->limit = deadline == DT_NOEND ? 0 : es_batch_size_of(p);
			batch = es_batch_next(p, target);
			es_projection_apply_batch(p, &batch, target);
			p->position = batch.to;
		}
	}
	return true;
}

static void
check_no_letters(Datum name)
{
	bool		isnull;
	int64		n;
	EsSpi		spi;

	es_spi_begin(&spi);
	(void) es_run(&count_letters, &name, NULL);
	n = DatumGetInt64(es_spi_value(0, 1, &isnull));
	es_spi_end(&spi);
	if (n > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projection \"%s\" cannot become synchronous: it has dead letters",
						TextDatumGetCString(name)),
				 errdetail_plural("%lld event waits in es.dead_letter.",
								  "%lld events wait in es.dead_letter.",
								  (unsigned long) n, (long long) n),
				 errhint("See to them with es_retry() or es_discard() first.")));
}

static void
change_mode(EsStatement *statement, Datum name, int64 position)
{
	Datum		values[2] = {name, Int64GetDatum(position)};
	EsSpi		spi;

	es_spi_begin(&spi);
	(void) es_run(statement, values, NULL);
	es_spi_end(&spi);
	es_projection_revise(name);
}

/*
 * Apply all but a little, while appenders go on: each turn leaves what was
 * appended during the one before, until a turn is short, or not shorter.
 */
static void
catch_up_nearly(List *partitions)
{
	long		ms = LONG_MAX;
	long		before;

	do
	{
		TimestampTz began = GetCurrentTimestamp();

		before = ms;
		(void) es_projection_catch_up(partitions, es_settled_position(), DT_NOEND);
		ms = TimestampDifferenceMilliseconds(began, GetCurrentTimestamp());
	} while (ms > APPENDERS_WAIT_MS && ms < before / 10 * 9);
}

/*
 * Apply the rest, for which appenders wait.  All that others appended is
 * settled; a saga may have appended here, and does so for what is applied now.
 */
static void
catch_up_fully(Datum name, List *partitions)
{
	TimestampTz deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
													   APPENDERS_WAIT_MS);
	int64		last;

	do
	{
		last = es_last_position();
		if (!es_projection_catch_up(partitions, last, deadline))
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("projection \"%s\" cannot become synchronous: appenders would have to wait for too long",
							TextDatumGetCString(name)),
					 errdetail("What was left for them to wait for could not be applied in %d ms.",
							   APPENDERS_WAIT_MS),
					 errhint("Let it catch up as an asynchronous projection first, or try again when fewer events are appended.")));
	} while (last < es_last_position());
}

/*
 * Make a locked asynchronous projection a synchronous one, from the next event
 * on.  Appenders wait only while the last, short part is applied.
 */
void
es_projection_make_sync(Datum name)
{
	List	   *partitions = es_projection_open(name, "mode => 'sync'");

	if (es_first_own_position() != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("a projection cannot become synchronous in a transaction that has appended events"),
				 errhint("Commit first.")));
	check_no_letters(name);
	catch_up_nearly(partitions);
	LockRelationOid(es_catalog()->event, ShareRowExclusiveLock);
	catch_up_fully(name, partitions);
	change_mode(&set_sync, name, 0);
}

/*
 * Make a locked synchronous projection an asynchronous one that goes on behind
 * the last event.
 */
void
es_projection_make_async(Datum name)
{
	LockRelationOid(es_catalog()->event, ShareRowExclusiveLock);
	change_mode(&set_async, name, es_last_position());
}
