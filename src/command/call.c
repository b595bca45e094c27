/*-------------------------------------------------------------------------
 * call.c
 *	  Calling a user's function many times.
 *
 * A function in SQL that is called by itself is parsed and planned in every
 * transaction, which costs more than an append, and each call is an execution
 * of its own.  So the call is planned as an expression, which the planner
 * replaces by the function's body where that is one expression, and the plan
 * is kept.  For functions in other languages nothing is lost.
 *
 * The plan is the server's CachedExpression: it says itself when something it
 * was made from has changed.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "command/call.h"
#include "nodes/makefuncs.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"

static Node *
parameter(int number, Oid type)
{
	Param	   *param = makeNode(Param);

	param->paramkind = PARAM_EXTERN;
	param->paramid = number;
	param->paramtype = type;
	param->paramtypmod = -1;
	param->paramcollid = get_typcollation(type);
	param->location = -1;
	return (Node *) param;
}

static void
free_expression(void *arg)
{
	FreeCachedExpression((CachedExpression *) arg);
}

/*
 * Plan function($1 jsonb, $2 argument).  What was planned before may be in use
 * up the stack, so it goes when the definition does.
 */
static void
plan_call(EsCallPlan *plan, Oid function, Oid argument)
{
	MemoryContext definition = GetMemoryChunkContext(plan);
	MemoryContextCallback *callback = MemoryContextAlloc(definition, sizeof(*callback));
	List	   *args = list_make2(parameter(1, JSONBOID), parameter(2, argument));
	FuncExpr   *call = makeFuncExpr(function, get_func_rettype(function), args,
									InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL);

	plan->expression = GetCachedExpression((Node *) call);
	callback->func = free_expression;
	callback->arg = plan->expression;
	MemoryContextRegisterResetCallback(definition, callback);
}

/*
 * Prepare to call function(jsonb, argument) any number of times in the current
 * memory context.  The plan is a chunk of the definition's memory context.
 */
void
es_call_begin(EsCall *call, EsCallPlan *plan, Oid function, Oid argument)
{
	if (plan->expression == NULL || !plan->expression->is_valid)
		plan_call(plan, function, argument);
	call->params = makeParamList(2);
	call->params->params[0] = (ParamExternData) {.ptype = JSONBOID};
	call->params->params[1] = (ParamExternData) {.ptype = argument};
	call->econtext = CreateStandaloneExprContext();
	call->econtext->ecxt_param_list_info = call->params;
	call->state = ExecInitExprWithParams((Expr *) plan->expression->expr, call->params);
}

/*
 * Call the function; the result is in the current memory context.
 */
Datum
es_call(EsCall *call, Datum state, Datum argument, bool *isnull)
{
	call->params->params[0].value = state;
	call->params->params[1].value = argument;
	ResetExprContext(call->econtext);
	return ExecEvalExpr(call->state, call->econtext, isnull);
}

void
es_call_end(EsCall *call)
{
	FreeExprContext(call->econtext, true);
}
