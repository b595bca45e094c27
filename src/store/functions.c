/*-------------------------------------------------------------------------
 * functions.c
 *	  es_append() and es_append_batch(): what SQL gives, made into events.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "fmgr.h"
#include "funcapi.h"
#include "store/append.h"
#include "store/dedup.h"
#include "store/functions.h"
#include "utils/builtins.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(es_append);
PG_FUNCTION_INFO_V1(es_append_batch);

static EsResultType append_result = {
	2, {{"position", INT8OID}, {"version", INT8OID}}, NULL
};
static EsResultType append_batch_result = {
	3, {{"first_position", INT8OID}, {"last_position", INT8OID}, {"version", INT8OID}}, NULL
};

/*
 * The row type that a function returns, built at its first call in a session.
 * get_call_result_type() would read it from the catalog in every call.
 */
TupleDesc
es_result_type(EsResultType *type)
{
	if (type->desc == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		TupleDesc	desc = CreateTemplateTupleDesc(type->ncolumns);

		for (int i = 0; i < type->ncolumns; i++)
			TupleDescInitEntry(desc, i + 1, type->columns[i].name,
							   type->columns[i].type, -1, 0);
		type->desc = BlessTupleDesc(desc);
		MemoryContextSwitchTo(old);
	}
	return type->desc;
}

/*
 * Return a row of bigints, which is what functions that append return.
 */
Datum
es_bigint_row(EsResultType *type, const int64 *columns)
{
	Datum		values[3];
	bool		nulls[3] = {false, false, false};

	for (int i = 0; i < type->ncolumns; i++)
		values[i] = Int64GetDatum(columns[i]);
	return HeapTupleGetDatum(heap_form_tuple(es_result_type(type), values, nulls));
}

/*
 * An expected version as SQL gives it: NULL stands for any.
 */
int64
es_expected_version(FunctionCallInfo fcinfo, int arg)
{
	int64		version;

	if (PG_ARGISNULL(arg))
		return ES_ANY_VERSION;
	version = PG_GETARG_INT64(arg);
	if (version < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("expected version must not be negative"),
				 errdetail("It is " INT64_FORMAT ".", version),
				 errhint("Give 0 where the stream must not exist, NULL for any version.")));
	return version;
}

Jsonb *
es_empty_object(void)
{
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum("{}")));
}

/*
 * A payload or the like as SQL gives it: NULL stands for {}, and what is no
 * object is refused before any type is looked at.
 */
Jsonb *
es_object_argument(FunctionCallInfo fcinfo, int arg, const char *what)
{
	Jsonb	   *value = PG_ARGISNULL(arg) ? es_empty_object() : PG_GETARG_JSONB_P(arg);

	es_check_object(what, value);
	return value;
}

/*
 * The id that an append comes with, or NULL.
 */
pg_uuid_t *
es_command_id_argument(FunctionCallInfo fcinfo, int arg)
{
	return PG_ARGISNULL(arg) ? NULL : PG_GETARG_UUID_P(arg);
}

/*
 * Append events to one stream for a request, unless it was there before.
 */
static void
append_once(EsRequest *request, EsEvent *events, int nevents,
			int64 expected_version, EsOutcome *outcome)
{
	EsStream	stream;

	es_check_can_append("es_append()");
	es_check_name("stream name", request->stream);
	if (es_dedup_find(request, outcome))
		return;
	es_stream_open(&stream, request->stream);
	es_stream_expect(&stream, expected_version);
	outcome->position = es_stream_append(&stream, events, nevents) + nevents - 1;
	outcome->version = stream.version;
	outcome->events = nevents;
	es_dedup_record(request, outcome);
}

/*
 * What es_append() was asked for, apart from the stream.
 */
static int64
fingerprint_of(const EsEvent *event)
{
	int64		fingerprint = 0;

	if (event->type)
		fingerprint = es_fingerprint_text(event->type, fingerprint);
	if (event->payload)
		fingerprint = es_fingerprint(event->payload, fingerprint);
	return fingerprint;
}

/*
 * es_append(stream, type, payload, expected_version, metadata, tags,
 *			 command_id)
 *
 * Append one event.  Names are 1 to 512 bytes, payload and metadata objects of
 * at most es.max_payload_size bytes.  Returns position and version; with a
 * command_id that was there before, those of then.  Errors: ES001 where the
 * stream is not at the expected version (message-db's and KurrentDB's
 * optimistic concurrency), 22004, 22023, 42622, 54000 on bad input, 40001 in
 * REPEATABLE READ where the stream moved, 23505 where the command_id stood for
 * something else.
 */
Datum
es_append(PG_FUNCTION_ARGS)
{
	EsRequest	request = {0};
	EsOutcome	outcome = {0};
	EsEvent		event = {0};
	int64		result[2];

	event.type = PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1);
	event.payload = PG_ARGISNULL(2) ? NULL : PG_GETARG_JSONB_P(2);
	event.metadata = PG_ARGISNULL(4) ? NULL : PG_GETARG_JSONB_P(4);
	event.tags = PG_ARGISNULL(5) ? NULL : PG_GETARG_ARRAYTYPE_P(5);

	request.id = es_command_id_argument(fcinfo, 6);
	request.name = "es_append";
	request.stream = PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0);
	if (request.id)
		request.fingerprint = fingerprint_of(&event);
	append_once(&request, &event, 1, es_expected_version(fcinfo, 3), &outcome);
	result[0] = outcome.position;
	result[1] = outcome.version;
	return es_bigint_row(&append_result, result);
}

/*
 * Refuse element number "i" (from 1 on) of a list of events.
 */
static void
bad_element(int i, const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("element %d of the list of events is not an event", i),
			 errdetail("%s", problem),
			 errhint("An event is {\"type\": \"...\", \"payload\": {...}, \"metadata\": {...}, \"tags\": [\"...\"]}.")));
}

/*
 * The tags of an event object, a JSON array of strings.
 */
static ArrayType *
tags_from_json(int i, JsonbValue *value)
{
	Datum	   *tags;
	int			n = 0;
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;

	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
		bad_element(i, "\"tags\" must be an array of strings.");
	tags = palloc(sizeof(Datum) * (JsonContainerSize(value->val.binary.data) + 1));
	it = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (v.type != jbvString)
			bad_element(i, "\"tags\" must be an array of strings.");
		tags[n++] = PointerGetDatum(cstring_to_text_with_len(v.val.string.val,
															 v.val.string.len));
	}
	return construct_array(tags, n, TEXTOID, -1, false, TYPALIGN_INT);
}

/*
 * Take one key of an event object over into the event; the key "stream" where
 * the caller wants to know of it.
 */
static void
take_key(int i, EsEvent *event, text **stream, JsonbValue *key, JsonbValue *value)
{
	const char *name = key->val.string.val;
	int			len = key->val.string.len;

#define KEY_IS(literal)	(len == sizeof(literal) - 1 && memcmp(name, literal, len) == 0)
	if (KEY_IS("type"))
	{
		if (value->type != jbvString)
			bad_element(i, "\"type\" must be a string.");
		event->type = cstring_to_text_with_len(value->val.string.val,
											   value->val.string.len);
	}
	else if (stream != NULL && KEY_IS("stream"))
	{
		if (value->type != jbvString)
			bad_element(i, "\"stream\" must be a string.");
		*stream = cstring_to_text_with_len(value->val.string.val,
										   value->val.string.len);
	}
	else if (KEY_IS("payload"))
		event->payload = JsonbValueToJsonb(value);
	else if (KEY_IS("metadata"))
		event->metadata = value->type == jbvNull ? NULL : JsonbValueToJsonb(value);
	else if (KEY_IS("tags"))
		event->tags = value->type == jbvNull ? NULL : tags_from_json(i, value);
	else
		bad_element(i, psprintf("Unknown key \"%.*s\".", len, name));
#undef KEY_IS
}

/*
 * Make element number "i" (from 1 on) of a list into an event.
 */
static void
event_from_json(int i, JsonbValue *element, EsEvent *event, text **stream)
{
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;
	JsonbIteratorToken token;

	memset(event, 0, sizeof(*event));
	if (element->type != jbvBinary ||
		!JsonContainerIsObject(element->val.binary.data))
		bad_element(i, "It is no object.");

	it = JsonbIteratorInit(element->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);
		take_key(i, event, stream, &key, &value);
	}
	if (event->type == NULL)
		bad_element(i, "It has no \"type\".");
	if (stream != NULL && *stream == NULL)
		bad_element(i, "It has no \"stream\".");
	if (event->payload == NULL)
		event->payload = es_empty_object();
}

/*
 * Make a JSON array into events, each of which names its stream where the
 * caller wants to know of these.
 */
EsEvent *
es_events_from_json(Jsonb *list, int *nevents, text ***streams)
{
	EsEvent    *events;
	JsonbIterator *it;
	JsonbValue	element;
	JsonbIteratorToken token;
	int			n = 0;

	if (!JB_ROOT_IS_ARRAY(list) || JB_ROOT_IS_SCALAR(list) ||
		JB_ROOT_COUNT(list) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the events must be a JSON array with at least one element"),
				 errdetail("It is %s.", JB_ROOT_IS_SCALAR(list) ? "a scalar" :
						   JB_ROOT_IS_ARRAY(list) ? "an empty array" : "an object"),
				 errhint("For example [{\"type\": \"ORDER_CREATED\", \"payload\": {}}].")));

	events = palloc_extended(sizeof(EsEvent) * JB_ROOT_COUNT(list), MCXT_ALLOC_HUGE);
	if (streams)
		*streams = palloc_extended(sizeof(text *) * JB_ROOT_COUNT(list),
								   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	it = JsonbIteratorInit(&list->root);
	while ((token = JsonbIteratorNext(&it, &element, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		event_from_json(n + 1, &element, &events[n],
						streams ? &(*streams)[n] : NULL);
		n++;
	}
	*nevents = n;
	return events;
}

/*
 * es_append_batch(stream, events, expected_version, command_id)
 *
 * Append the events of a JSON array, all or none, at consecutive versions and
 * positions.  Returns the first and the last position and the new version.
 * Errors: those of es_append(), and 22023 for what is not an event.
 */
Datum
es_append_batch(PG_FUNCTION_ARGS)
{
	EsRequest	request = {0};
	EsOutcome	outcome = {0};
	EsEvent    *events;
	int			nevents;
	int64		result[3];

	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the events must not be null"),
				 errdetail("They are NULL."),
				 errhint("Give an array of at least one event.")));
	events = es_events_from_json(PG_GETARG_JSONB_P(1), &nevents, NULL);

	request.id = es_command_id_argument(fcinfo, 3);
	request.name = "es_append_batch";
	request.stream = PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0);
	if (request.id)
		request.fingerprint = es_fingerprint(PG_GETARG_JSONB_P(1), 0);
	append_once(&request, events, nevents, es_expected_version(fcinfo, 2), &outcome);
	result[0] = outcome.position - outcome.events + 1;
	result[1] = outcome.position;
	result[2] = outcome.version;
	return es_bigint_row(&append_batch_result, result);
}
