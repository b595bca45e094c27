/*-------------------------------------------------------------------------
 * call.h
 *	  Calling a user's function many times.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMMAND_CALL_H
#define ES_COMMAND_CALL_H

#include "executor/executor.h"
#include "utils/plancache.h"

/*
 * The planned call of a function, kept with the definition that names it.
 * Zeroed where it was not planned yet.
 */
typedef struct EsCallPlan
{
	CachedExpression *expression;
} EsCallPlan;

/*
 * A function that is being called; lives as long as the memory context and
 * the definition that es_call_begin() found.
 */
typedef struct EsCall
{
	ExprState  *state;
	ExprContext *econtext;
	ParamListInfo params;
} EsCall;

extern void es_call_begin(EsCall *call, EsCallPlan *plan, Oid function, Oid argument);
extern Datum es_call(EsCall *call, Datum state, Datum argument, bool *isnull);
extern void es_call_end(EsCall *call);

#endif							/* ES_COMMAND_CALL_H */
