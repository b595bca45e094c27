/*
 * counter.c
 *	  An evolve function, a validator and a decider in C, as others may write
 *	  them: t/073_functions_in_c.pl loads them.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/numeric.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(counter_evolve);
PG_FUNCTION_INFO_V1(counter_validate);
PG_FUNCTION_INFO_V1(counter_decide);

/*
 * The number at a key, or 0.
 */
static int64
number_at(Jsonb *object, const char *key)
{
	JsonbValue *value = getKeyJsonValueFromContainer(&object->root, key,
													 strlen(key), NULL);

	if (value == NULL || value->type != jbvNumeric)
		return 0;
	return DatumGetInt64(DirectFunctionCall1(numeric_int8,
											 NumericGetDatum(value->val.numeric)));
}

static Datum
json(const char *text)
{
	return DirectFunctionCall1(jsonb_in, CStringGetDatum(text));
}

/*
 * Counts events, and says how much memory was in use at most when it was
 * called.  It leaves 10 kB behind at every call.
 */
Datum
counter_evolve(PG_FUNCTION_ARGS)
{
	Jsonb	   *state = PG_GETARG_JSONB_P(0);
	HeapTupleHeader event = PG_GETARG_HEAPTUPLEHEADER(1);
	bool		isnull;
	int64		version = DatumGetInt64(GetAttributeByName(event, "version", &isnull));
	int64		memory = (int64) MemoryContextMemAllocated(CurrentMemoryContext, true);

	(void) palloc(10 * 1024);
	if (number_at(state, "n") + 1 != version)
		elog(ERROR, "event " INT64_FORMAT " comes out of turn", version);
	if (number_at(state, "memory") > memory)
		memory = number_at(state, "memory");
	PG_RETURN_DATUM(json(psprintf("{\"n\": " INT64_FORMAT ", \"memory\": " INT64_FORMAT "}",
								  version, memory)));
}

/*
 * Rejects more than 100 at once.
 */
Datum
counter_validate(PG_FUNCTION_ARGS)
{
	HeapTupleHeader command = PG_GETARG_HEAPTUPLEHEADER(1);
	bool		isnull;
	Jsonb	   *payload = DatumGetJsonbP(GetAttributeByName(command, "payload", &isnull));

	if (number_at(payload, "n") > 100)
		ereport(ERROR,
				(errcode(ERRCODE_RAISE_EXCEPTION),
				 errmsg("that is too much")));
	PG_RETURN_VOID();
}

/*
 * As many events as the payload's "n" says, one by one; at "fail" it raises, at
 * "null" it returns a row that is none.
 */
Datum
counter_decide(PG_FUNCTION_ARGS)
{
	HeapTupleHeader command = PG_GETARG_HEAPTUPLEHEADER(1);
	bool		isnull;
	Jsonb	   *payload = DatumGetJsonbP(GetAttributeByName(command, "payload", &isnull));
	FuncCallContext *call;
	int64		i;

	if (SRF_IS_FIRSTCALL())
	{
		call = SRF_FIRSTCALL_INIT();
		call->max_calls = number_at(payload, "n");
		call->tuple_desc = CreateTupleDescCopy(((ReturnSetInfo *) fcinfo->resultinfo)->expectedDesc);
	}
	call = SRF_PERCALL_SETUP();
	i = (int64) call->call_cntr + 1;
	if (i == number_at(payload, "fail"))
		ereport(ERROR,
				(errcode(ERRCODE_RAISE_EXCEPTION),
				 errmsg("event " INT64_FORMAT " must not be", i)));
	if (i == number_at(payload, "null"))
		SRF_RETURN_NEXT_NULL(call);
	if (call->call_cntr < call->max_calls)
	{
		Datum		values[5] = {CStringGetTextDatum("COUNTED"),
		json(psprintf("{\"i\": " INT64_FORMAT "}", i))};
		bool		nulls[5] = {false, false, true, true, true};

		SRF_RETURN_NEXT(call, HeapTupleGetDatum(heap_form_tuple(call->tuple_desc,
																values, nulls)));
	}
	SRF_RETURN_DONE(call);
}
