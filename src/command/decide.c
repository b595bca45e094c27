/*-------------------------------------------------------------------------
 * decide.c
 *	  Calling the validator and the decider of a command.
 *
 * Both are called as the caller of es_submit(), with the search_path that was
 * in force when the command was created.  What they raise on purpose becomes a
 * rejection in their own words; what they return wrongly is an error that
 * names them.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "command/call.h"
#include "command/decide.h"
#include "command/definition.h"
#include "command/payload.h"
#include "es.h"
#include "executor/executor.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "nodes/execnodes.h"
#include "pgstat.h"
#include "store/functions.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/typcache.h"

/* The attributes of es.new_event. */
enum
{
	NEW_TYPE,
	NEW_PAYLOAD,
	NEW_METADATA,
	NEW_TAGS,
	NEW_STREAM,
	NEW_COLUMNS
};

/*
 * The command as a row of type es.command.
 */
static Datum
command_row(const EsSubmission *s)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(es_rowtype("command"), -1);
	Datum		values[9];
	bool		nulls[9] = {false};
	HeapTuple	tuple;

	values[0] = CStringGetTextDatum(s->type->name);
	values[1] = PointerGetDatum(s->id);
	values[2] = PointerGetDatum(s->stream.name);
	values[3] = Int64GetDatum(s->stream.version);
	values[4] = JsonbPGetDatum(s->payload);
	values[5] = JsonbPGetDatum(s->metadata);
	nulls[5] = s->metadata == NULL;
	values[6] = UUIDPGetDatum(s->command_id);
	nulls[6] = s->command_id == NULL;
	values[7] = CStringGetTextDatum(GetUserNameFromId(GetUserId(), false));
	values[8] = TimestampTzGetDatum(GetCurrentStatementStartTimestamp());
	tuple = heap_form_tuple(desc, values, nulls);
	ReleaseTupleDesc(desc);
	return HeapTupleGetDatum(tuple);
}

/*
 * What a validator or decider raised: make a rejection of it, in its own words.
 */
static void
rethrow_as_rejection(const EsSubmission *s, MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	error = CopyErrorData();
	if (!es_is_rejection(error->sqlerrcode))
		PG_RE_THROW();
	FlushErrorState();
	if (error->detail == NULL)
		error->detail = psprintf("Command \"%s\" on stream \"%s\" was rejected with SQLSTATE %s.",
								 s->type->name, text_to_cstring(s->stream.name),
								 unpack_sql_state(error->sqlerrcode));
	if (error->hint == NULL)
		error->hint = pstrdup("Nothing was appended.  Correct the command and submit it again.");
	error->sqlerrcode = ERRCODE_ES_COMMAND_REJECTED;
	ReThrowError(error);
}

static void
malformed(Oid function, int n, const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_EXTERNAL_ROUTINE_INVOCATION_EXCEPTION),
			 errmsg("decider %s returned a malformed event",
					format_procedure(function)),
			 errdetail("Event %d %s.", n, problem),
			 errhint("It must return rows (type, payload, metadata, tags, stream) of type es.new_event; type is a name, payload and metadata are JSON objects, and all but type may be NULL.")));
}

/*
 * The event's metadata over that of the command, key by key.
 */
static Jsonb *
merge_metadata(const EsSubmission *s, Jsonb *metadata)
{
	if (s->metadata == NULL)
		return metadata;
	if (metadata == NULL)
		return s->metadata;
	return DatumGetJsonbP(DirectFunctionCall2(jsonb_concat,
											  JsonbPGetDatum(s->metadata),
											  JsonbPGetDatum(metadata)));
}

/*
 * Take a returned row over as an event.
 */
static void
take_event(const EsSubmission *s, EsDecision *d, Datum *values, bool *nulls)
{
	Oid			function = s->type->decide;
	int			n = d->nevents + 1;
	EsEvent    *event;

	if (nulls[NEW_TYPE])
		malformed(function, n, "has no type");
	if (!nulls[NEW_PAYLOAD] && !JB_ROOT_IS_OBJECT(DatumGetJsonbP(values[NEW_PAYLOAD])))
		malformed(function, n, "has a payload that is no JSON object");
	if (!nulls[NEW_METADATA] && !JB_ROOT_IS_OBJECT(DatumGetJsonbP(values[NEW_METADATA])))
		malformed(function, n, "has metadata that are no JSON object");
	if (!nulls[NEW_TAGS] && array_contains_nulls(DatumGetArrayTypeP(values[NEW_TAGS])))
		malformed(function, n, "has a tag that is NULL");

	/* Room for a power of two of events, so that adding them is cheap. */
	if ((d->nevents & (d->nevents - 1)) == 0)
	{
		int			size = Max(2 * d->nevents, 1);

		d->events = d->events ? repalloc_huge(d->events, sizeof(EsEvent) * size)
			: palloc(sizeof(EsEvent) * size);
		d->streams = d->streams ? repalloc_huge(d->streams, sizeof(text *) * size)
			: palloc(sizeof(text *) * size);
	}
	event = &d->events[d->nevents];
	memset(event, 0, sizeof(*event));
	event->type = DatumGetTextPCopy(values[NEW_TYPE]);
	event->payload = nulls[NEW_PAYLOAD]
		? es_empty_object() : DatumGetJsonbPCopy(values[NEW_PAYLOAD]);
	event->metadata = merge_metadata(s, nulls[NEW_METADATA] ? NULL
									 : DatumGetJsonbPCopy(values[NEW_METADATA]));
	event->tags = nulls[NEW_TAGS] ? NULL : DatumGetArrayTypePCopy(values[NEW_TAGS]);
	d->streams[d->nevents] = nulls[NEW_STREAM] ? NULL
		: DatumGetTextPCopy(values[NEW_STREAM]);
	d->nevents++;
}

/*
 * The same for a row as a function returns it one by one.
 */
static void
take_row(const EsSubmission *s, EsDecision *d, TupleDesc desc, Datum row)
{
	HeapTupleHeader header = DatumGetHeapTupleHeader(row);
	HeapTupleData tuple;
	Datum		values[NEW_COLUMNS];
	bool		nulls[NEW_COLUMNS];

	tuple.t_len = HeapTupleHeaderGetDatumLength(header);
	ItemPointerSetInvalid(&tuple.t_self);
	tuple.t_tableOid = InvalidOid;
	tuple.t_data = header;
	heap_deform_tuple(&tuple, desc, values, nulls);
	take_event(s, d, values, nulls);
}

/*
 * The same for all rows of a tuplestore.
 */
static void
take_tuplestore(const EsSubmission *s, EsDecision *d, TupleDesc desc,
				Tuplestorestate *store)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(desc, &TTSOpsMinimalTuple);

	while (tuplestore_gettupleslot(store, true, false, slot))
	{
		slot_getallattrs(slot);
		take_event(s, d, slot->tts_values, slot->tts_isnull);
	}
	ExecDropSingleTupleTableSlot(slot);
	tuplestore_end(store);
}

/*
 * Call the decider by the protocol of set returning functions, in whichever of
 * its two modes the function wants.
 */
static void
call_decider(const EsSubmission *s, Jsonb *state, EsDecision *d)
{
	FmgrInfo	function;
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(es_rowtype("new_event"), -1);
	ExprContext *econtext = CreateStandaloneExprContext();
	ReturnSetInfo rsinfo = {.type = T_ReturnSetInfo};
	Datum		command = command_row(s);

	LOCAL_FCINFO(call, 2);

	fmgr_info(s->type->decide, &function);
	rsinfo.econtext = econtext;
	rsinfo.expectedDesc = desc;
	rsinfo.allowedModes = SFRM_ValuePerCall | SFRM_Materialize | SFRM_Materialize_Preferred;
	rsinfo.returnMode = SFRM_ValuePerCall;
	InitFunctionCallInfoData(*call, &function, 2, InvalidOid, NULL, (Node *) &rsinfo);
	call->args[0].value = JsonbPGetDatum(state);
	call->args[0].isnull = false;
	call->args[1].value = command;
	call->args[1].isnull = false;
	for (;;)
	{
		PgStat_FunctionCallUsage usage;
		Datum		row;

		CHECK_FOR_INTERRUPTS();
		call->isnull = false;
		rsinfo.isDone = ExprSingleResult;
		pgstat_init_function_usage(call, &usage);
		row = FunctionCallInvoke(call);
		pgstat_end_function_usage(&usage, rsinfo.isDone != ExprMultipleResult);
		if (rsinfo.returnMode == SFRM_Materialize)
		{
			if (rsinfo.setResult)
				take_tuplestore(s, d, desc, rsinfo.setResult);
			break;
		}
		if (rsinfo.isDone == ExprEndResult)
			break;
		if (call->isnull)
			malformed(function.fn_oid, d->nevents + 1, "is NULL");
		take_row(s, d, desc, row);
		if (rsinfo.isDone != ExprMultipleResult)
			break;
	}
	FreeExprContext(econtext, true);
}

static void
call_validator(const EsSubmission *s, Jsonb *state)
{
	EsCall		call;
	bool		isnull;

	es_call_begin(&call, s->type->validate_plan, s->type->validate,
				  es_rowtype("command"));
	(void) es_call(&call, JsonbPGetDatum(state), command_row(s), &isnull);
	es_call_end(&call);
}

/*
 * Call the decider, where there is a decision to fill, or the validator.
 *
 * One that is STABLE reads with the active snapshot, and that of the statement
 * is older than the stream's lock: it gets a new one.  An error leaves that to
 * the end of the subtransaction (submit.c).
 */
static void
call_user_function(const EsSubmission *s, Oid oid, const char *role,
				   Jsonb *state, EsDecision *decision)
{
	MemoryContext context = CurrentMemoryContext;
	const char *deciding;
	int			level;

	if (!es_may_execute(oid))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION, get_func_name(oid));
	deciding = es_deciding_begin(psprintf("the %s of command \"%s\"", role, s->type->name));
	level = es_search_path_enter(s->type->search_path);
	CommandCounterIncrement();
	PushActiveSnapshot(GetTransactionSnapshot());
	PG_TRY();
	{
		if (decision)
			call_decider(s, state, decision);
		else
			call_validator(s, state);
	}
	PG_CATCH();
	{
		es_deciding_end(deciding);
		rethrow_as_rejection(s, context);
	}
	PG_END_TRY();
	PopActiveSnapshot();
	es_deciding_end(deciding);
	es_search_path_leave(level);
}

/*
 * Call the validator; an error where it rejects.
 */
void
es_validate(const EsSubmission *s, Jsonb *state)
{
	call_user_function(s, s->type->validate, "validator", state, NULL);
}

/*
 * Call the decider and take its events; an error where it rejects.
 */
void
es_decide(const EsSubmission *s, Jsonb *state, EsDecision *decision)
{
	memset(decision, 0, sizeof(*decision));
	call_user_function(s, s->type->decide, "decider", state, decision);
}
