/*-------------------------------------------------------------------------
 * submit.c
 *	  es_submit(): from a command to events.
 *
 * The steps, in the order that gives each error its due: the command is known;
 * the id was not seen before; the payload fits; then, with the stream locked,
 * the version is the expected one, the aggregate exists or not as it should,
 * and the validator lets it pass.  Only then a position is taken.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "command/dedup.h"
#include "command/payload.h"
#include "command/registry.h"
#include "es.h"
#include "fault.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "store/append.h"
#include "store/functions.h"
#include "store/watermark.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"
#include "utils/typcache.h"

PG_FUNCTION_INFO_V1(es_submit);

/*
 * A command on its way.
 */
typedef struct Submission
{
	EsCommandType *type;
	text	   *id;
	Jsonb	   *payload;
	Jsonb	   *metadata;		/* or NULL */
	pg_uuid_t  *command_id;		/* or NULL */
	int64		expected_version;
	EsStream	stream;
} Submission;

static Jsonb *
empty_object(void)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
}

/*
 * The name of the aggregate's stream.
 */
static text *
stream_name(const EsCommandType *type, const text *id)
{
	StringInfoData name;

	initStringInfo(&name);
	appendBinaryStringInfo(&name, VARDATA_ANY(type->category),
						   VARSIZE_ANY_EXHDR(type->category));
	appendStringInfoChar(&name, '-');
	appendBinaryStringInfo(&name, VARDATA_ANY(id), VARSIZE_ANY_EXHDR(id));
	return cstring_to_text_with_len(name.data, name.len);
}

static void
check_existence(const Submission *s)
{
	bool		exists = s->stream.version > 0;

	if (s->type->creates == ES_MUST_NOT_EXIST && exists)
		ereport(ERROR,
				(errcode(ERRCODE_ES_COMMAND_REJECTED),
				 errmsg("%s \"%s\" already exists",
						text_to_cstring(s->stream.category), text_to_cstring(s->id)),
				 errdetail("Command \"%s\" creates it, but stream \"%s\" is at version " INT64_FORMAT ".",
						   s->type->name, text_to_cstring(s->stream.name),
						   s->stream.version),
				 errhint("Choose another id, or submit a command that changes what exists.")));
	if (s->type->creates == ES_MUST_EXIST && !exists)
		ereport(ERROR,
				(errcode(ERRCODE_ES_COMMAND_REJECTED),
				 errmsg("%s \"%s\" does not exist",
						text_to_cstring(s->stream.category), text_to_cstring(s->id)),
				 errdetail("Command \"%s\" needs it, but stream \"%s\" has no event.",
						   s->type->name, text_to_cstring(s->stream.name)),
				 errhint("Create it first.")));
}

/*
 * The command as a row of type es.command.
 */
static Datum
command_row(const Submission *s)
{
	TupleDesc	desc = lookup_rowtype_tupdesc(es_command_rowtype(), -1);
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
 * What a validator raised: make a rejection of it, in its own words.
 */
static void
rethrow_as_rejection(const Submission *s, MemoryContext context)
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

/*
 * Call the validator, as the caller of es_submit().
 *
 * Each call gets an FmgrInfo of its own.  A language handler keeps the state
 * of the execution there, SQL's does, so one that another call has used may be
 * in the middle of it, when a validator submits a command itself, or may have
 * been left there by an error.
 */
static void
validate(const Submission *s)
{
	MemoryContext context = CurrentMemoryContext;
	FmgrInfo	function;

	if (!es_may_execute(s->type->validate->fn_oid))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION,
					   get_func_name(s->type->validate->fn_oid));
	fmgr_info(s->type->validate->fn_oid, &function);
	PG_TRY();
	{
		LOCAL_FCINFO(call, 2);
		PgStat_FunctionCallUsage usage;

		InitFunctionCallInfoData(*call, &function, 2, InvalidOid, NULL, NULL);
		call->args[0].value = JsonbPGetDatum(empty_object());
		call->args[0].isnull = false;
		call->args[1].value = command_row(s);
		call->args[1].isnull = false;
		pgstat_init_function_usage(call, &usage);
		(void) FunctionCallInvoke(call);
		pgstat_end_function_usage(&usage, true);
	}
	PG_CATCH();
	{
		rethrow_as_rejection(s, context);
	}
	PG_END_TRY();
}

/*
 * Take a command through its steps.
 */
static void
submit(Submission *s, EsOutcome *outcome)
{
	text	   *name = stream_name(s->type, s->id);
	EsEvent		event = {0};

	if (s->command_id &&
		es_dedup_find(s->command_id, s->type->name, name, s->payload, outcome))
		return;
	if (s->type->payload_type)
		es_check_payload(s->type->name, s->type->payload_type, s->payload);

	es_stream_open(&s->stream, name);
	es_stream_expect(&s->stream, s->expected_version);
	check_existence(s);
	if (s->type->validate)
		validate(s);

	event.type = s->type->event_type;
	event.payload = s->payload;
	event.metadata = s->metadata;
	outcome->position = es_stream_append(&s->stream, &event, 1);
	outcome->stream = s->stream.name;
	outcome->version = s->stream.version;
	outcome->events = 1;
	outcome->duplicate = false;
	if (s->command_id)
		es_dedup_record(s->command_id, s->type->name, s->payload, outcome);
	ES_FAULT("submit.recorded");
}

/*
 * A payload that is no object is refused before any type is looked at.
 */
static Jsonb *
payload_argument(FunctionCallInfo fcinfo, int arg)
{
	Jsonb	   *payload = PG_ARGISNULL(arg) ? empty_object() : PG_GETARG_JSONB_P(arg);

	es_check_object("payload", payload);
	return payload;
}

/*
 * es_submit(command, id, payload, command_id, expected_version, metadata)
 *
 * Submit a command to the aggregate "id" of the command's category.  Returns
 * the stream, its version, the position of the last event, the number of
 * events, and whether this was a repetition of a command_id, whose first
 * result it then is.  Errors: ES003 unknown command; 42501 not the
 * caller's to submit; ES002 rejected; ES001 not
 * at the expected version; 23505 the command_id stood for another command; and
 * those of es_append().  Idempotency keys are the field's common practice;
 * here key and effect are one transaction.
 */
Datum
es_submit(PG_FUNCTION_ARGS)
{
	Submission	s = {0};
	EsOutcome	outcome = {0};
	TupleDesc	desc;
	Datum		values[5];
	bool		nulls[5] = {false};

	(void) es_database();
	es_check_name("command name", PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	s.type = es_command_type(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	es_check_may_submit(&s.type->submitters, s.type->name);
	es_check_name("aggregate id", PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1));
	s.id = PG_GETARG_TEXT_PP(1);
	s.payload = payload_argument(fcinfo, 2);
	s.command_id = PG_ARGISNULL(3) ? NULL : PG_GETARG_UUID_P(3);
	s.expected_version = es_expected_version(fcinfo, 4);
	s.metadata = PG_ARGISNULL(5) ? NULL : PG_GETARG_JSONB_P(5);
	submit(&s, &outcome);

	if (get_call_result_type(fcinfo, NULL, &desc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = PointerGetDatum(outcome.stream);
	values[1] = Int64GetDatum(outcome.version);
	values[2] = Int64GetDatum(outcome.position);
	nulls[2] = outcome.events == 0;
	values[3] = Int32GetDatum(outcome.events);
	values[4] = BoolGetDatum(outcome.duplicate);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc), values, nulls));
}
