/*-------------------------------------------------------------------------
 * run.c
 *	  Running the query of a projection over some events.
 *
 * The query is its owner's, and runs with the owner's rights and no others.
 * A projector is connected as the owner.  In any other session (that of an
 * appender, for a synchronous projection, or of an administrator) the user is
 * switched as for REFRESH MATERIALIZED VIEW and functions of indexes: as a
 * security-restricted operation, in which the query cannot become the
 * session's user again, leave a trigger to be fired as him later, or change
 * his settings; and with pg_temp last in the search_path, so that a temporary
 * table of the session cannot take the place of the owner's.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "es.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "projection/poison.h"
#include "projection/run.h"
#include "tcop/dest.h"
#include "utils/guc.h"
#include "utils/resowner.h"

void
es_projection_forget_plan(EsProjection *p)
{
	if (p->plan && p->keep_plan)
		SPI_freeplan(p->plan);
	p->plan = NULL;
}

/*
 * Plan the query, and plan it again when the batch is ten times as large, or as
 * small, as that which it was planned for: the planner looks at the range, and a
 * plan for ten events is not one for a thousand.  Also when as much was applied
 * again as before, since one for a table that is empty is not one for a table
 * that was filled.
 */
static void
plan_query(EsProjection *p, int64 positions)
{
	bool		fits = positions <= 10 * p->planned_for && p->planned_for <= 10 * positions;

	p->events_run += positions;
	if (p->plan && ((fits && p->events_run <= p->replan_at) || p->running > 1))
		return;

	es_projection_forget_plan(p);
	p->plan = SPI_prepare(p->query, 0, NULL);
	if (p->plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	if (p->keep_plan && SPI_keepplan(p->plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	p->planned_for = positions;
	p->replan_at = 2 * p->events_run;
}

static void
execute(EsProjection *p, int64 positions)
{
	SPIExecuteOptions options = {0};

	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	plan_query(p, positions);
	options.dest = None_Receiver;
	if (SPI_execute_plan_extended(p->plan, &options) < 0)
		elog(ERROR, "SPI_execute_plan_extended failed");
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	if (!p->keep_plan)
		p->plan = NULL;
}

/*
 * Say in every error which projection it comes from.
 */
static void
add_context(void *arg)
{
	const EsProjection *p = (const EsProjection *) arg;

	errcontext("projection \"%s\"", p->name);
}

/*
 * Run the query over the events behind "after" up to "to" that pass a filter
 * (NULL: all), as the owner; "seen", unless NULL, counts what it looks at.
 * Restricted, where the session is not one that the owner has for himself.  What
 * it changes of settings does not last.
 */
void
es_projection_run(EsProjection *p, const EsFilter *filter, int64 after,
				  int64 to, EsBatchSeen *seen, bool restricted)
{
	EsBatchView view = {filter, after, to, seen};
	EsBatchView outer;
	ErrorContextCallback context;
	int			guc_level = NewGUCNestLevel();
	Oid			user;
	int			security;

	GetUserIdAndSecContext(&user, &security);
	if (restricted || user != p->owner)
		SetUserIdAndSecContext(p->owner,
							   security | SECURITY_LOCAL_USERID_CHANGE |
							   SECURITY_RESTRICTED_OPERATION);
	(void) set_config_option("search_path", p->search_path,
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	context.callback = add_context;
	context.arg = p;
	context.previous = error_context_stack;
	error_context_stack = &context;

	outer = es_batch_show(view);
	p->running++;
	PG_TRY();
	{
		execute(p, to - after);
	}
	PG_FINALLY();
	{
		p->running--;
		(void) es_batch_show(outer);
	}
	PG_END_TRY();

	error_context_stack = context.previous;
	AtEOXact_GUC(false, guc_level);
	/* An assign hook of es.batch may just have run. */
	(void) es_batch_show(outer);
	SetUserIdAndSecContext(user, security);
}

/*
 * The same in a subtransaction: false, with the error in the current context,
 * where it failed because of the events.
 */
bool
es_projection_try(EsProjection *p, const EsFilter *filter, int64 after,
				  int64 to, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;

	*error = NULL;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		es_projection_run(p, filter, after, to, NULL, false);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		*error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		p->plan = NULL;
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (*error && es_error_is_transient((*error)->sqlerrcode))
		ReThrowError(*error);
	return *error == NULL;
}
