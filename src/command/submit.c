/*-------------------------------------------------------------------------
 * submit.c
 *	  es_submit(): from a command to events.
 *
 * The steps, in the order that gives each error its due: the command is known;
 * the id was not seen before; the payload fits; then, with the stream locked,
 * the version is the expected one, the aggregate exists or not as it should,
 * the validator lets it pass, and the decider says what happens.  Only then a
 * position is taken.
 *
 * A decider may name other streams, which are locked when it has: those that
 * come behind the command's own in the order of names, in which everybody locks
 * streams, may be waited for.  For one that comes before it and is locked by
 * somebody else, the decision is taken back, which is why it runs in a
 * subtransaction, and made again with all those streams locked in order, as far
 * as they are known by then.  So commands that write to streams of each other
 * wait for each other and do not run into deadlocks.  Where one happens none
 * the less, by locks that deciders take themselves (es_lock_matching()) or by
 * those of the tags that they decided on, the decision is made again with the
 * whole log locked first.  Where a decider locks a query of types alone, which
 * locks the log, all further decisions on its command in this session begin
 * with that.  A validator can take such locks, too, so all this holds for it.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "command/aggregate.h"
#include "command/decide.h"
#include "command/payload.h"
#include "command/registry.h"
#include "command/state.h"
#include "es.h"
#include "fault.h"
#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "store/append.h"
#include "store/dedup.h"
#include "store/functions.h"
#include "store/lock.h"
#include "store/streams.h"
#include "utils/builtins.h"
#include "utils/resowner.h"

PG_FUNCTION_INFO_V1(es_submit);

static EsResultType submit_result = {
	5, {{"stream", TEXTOID}, {"version", INT8OID}, {"position", INT8OID},
	{"events", INT4OID}, {"duplicate", BOOLOID}}, NULL
};

/* A decision whose streams change each time is not made again more often. */
#define MAX_ATTEMPTS	8

/*
 * How an attempt to decide ended.
 */
typedef enum Attempt
{
	DECIDED,
	MORE_STREAMS,				/* to be locked first */
	DEADLOCK
} Attempt;

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
check_existence(const EsSubmission *s)
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
 * The state that a validator or decider gets: {} where no aggregate is defined.
 */
static Jsonb *
state_of(EsSubmission *s, EsState *state)
{
	EsAggregate *aggregate = NULL;

	if (!s->type->no_aggregate)
		aggregate = es_aggregate_of(s->type->category);
	if (aggregate == NULL)
	{
		s->type->no_aggregate = true;
		return es_empty_object();
	}
	es_state_decide(state, aggregate, &s->stream);
	return state->state;
}

/*
 * The stream is locked: the checks that need it.
 */
static void
check_stream(EsSubmission *s)
{
	es_stream_expect(&s->stream, s->expected_version);
	check_existence(s);
}

/*
 * Without a decider the command is the event.
 */
static void
decide_plainly(const EsSubmission *s, EsDecision *d)
{
	d->nevents = 1;
	d->events = palloc0(sizeof(EsEvent));
	d->events->type = s->type->event_type;
	d->events->payload = s->payload;
	d->events->metadata = s->metadata;
	d->streams = palloc0(sizeof(text *));
}

/*
 * Open the streams that the decision names and that are not open yet, and let
 * the events know them.  False where that would be out of order.
 */
static bool
open_others(EsSubmission *s, const EsStreams *open, EsDecision *d, bool wait)
{
	EsStreams	others;
	text	  **names = palloc(sizeof(text *) * Max(d->nevents, 1));
	int			n = 0;

	for (int i = 0; i < d->nevents; i++)
		if (d->streams[i] && es_streams_find(open, d->streams[i]) == NULL)
			names[n++] = d->streams[i];
	es_streams_of(&others, names, n);
	for (int i = 0; i < others.n; i++)
	{
		EsStream   *other = &others.streams[i];

		if (wait || es_compare_streams(other, &open->streams[open->n - 1]) > 0)
			es_stream_open(other, other->name);
		else if (!es_stream_try_open(other, other->name))
			return false;
	}
	for (int i = 0; i < d->nevents; i++)
	{
		EsStream   *stream = NULL;

		if (d->streams[i])
			stream = es_streams_find(open, d->streams[i]);
		if (d->streams[i] && stream == NULL)
			stream = es_streams_find(&others, d->streams[i]);
		if (stream && es_compare_streams(stream, &s->stream) != 0)
			d->events[i].stream = stream;
	}
	return true;
}

/*
 * Lock streams, among them the command's own, decide, and lock what the events
 * need further.
 */
static Attempt
attempt(EsSubmission *s, text *name, EsStreams *open, EsState *state,
		EsDecision *d, bool wait)
{
	Jsonb	   *decided_on;

	es_streams_open(open);
	s->stream = *es_streams_find(open, name);
	check_stream(s);
	decided_on = state_of(s, state);
	if (OidIsValid(s->type->validate))
		es_validate(s, decided_on);
	if (OidIsValid(s->type->decide))
		es_decide(s, decided_on, d);
	else
		decide_plainly(s, d);
	if (!open_others(s, open, d, wait))
		return MORE_STREAMS;
	es_events_lock_tags(d->events, d->nevents);
	return DECIDED;
}

/*
 * The same in a subtransaction, which is taken back unless it is decided.
 */
static Attempt
attempt_in_subtransaction(EsSubmission *s, text *name, EsStreams *open,
						  EsState *state, EsDecision *d, bool log_first, bool wait)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	volatile Attempt result = DEADLOCK;

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		if (log_first)
			es_lock_log();
		result = attempt(s, name, open, state, d, wait);
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
	}
	PG_END_TRY();
	if (result == DECIDED)
		ReleaseCurrentSubTransaction();
	else
		RollbackAndReleaseCurrentSubTransaction();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (error && (error->sqlerrcode != ERRCODE_T_R_DEADLOCK_DETECTED ||
				  log_first))
		ReThrowError(error);
	return result;
}

/*
 * The streams to lock in the next attempt: those of the last one and those
 * that were decided on in it.
 */
static text **
more_streams(const EsStreams *open, const EsDecision *d, int *n)
{
	text	  **names = palloc(sizeof(text *) * (open->n + d->nevents));

	*n = 0;
	for (int i = 0; i < open->n; i++)
		names[(*n)++] = open->streams[i].name;
	for (int i = 0; i < d->nevents; i++)
		if (d->streams[i])
			names[(*n)++] = d->streams[i];
	return names;
}

/*
 * Let the validator and the decider decide, with every stream that is written
 * to locked.
 */
static void
decide(EsSubmission *s, text *name, EsState *state, EsDecision *d)
{
	text	  **names = palloc(sizeof(text *));
	bool		log_first = s->type->locks_log;
	int			n = 1;

	names[0] = name;
	for (int i = 1;; i++)
	{
		EsStreams	open;

		es_streams_of(&open, names, n);
		switch (attempt_in_subtransaction(s, name, &open, state, d, log_first,
										  i >= MAX_ATTEMPTS))
		{
			case DECIDED:
				return;
			case MORE_STREAMS:
				names = more_streams(&open, d, &n);
				break;
			case DEADLOCK:
				log_first = true;
				if (es_log_was_refused())
					s->type->locks_log = true;
				break;
		}
	}
}

/*
 * Take a command through its steps.
 */
static void
submit(EsSubmission *s, EsOutcome *outcome)
{
	text	   *name = stream_name(s->type, s->id);
	EsState		state = {0};
	EsDecision	d = {0};
	EsRequest	request = {s->command_id, s->type->name, name,
	s->command_id ? es_fingerprint(s->payload, 0) : 0};

	if (es_dedup_find(&request, outcome))
		return;
	if (s->type->payload_type)
		es_check_payload(s->type->name, s->type->payload_type, s->payload);

	if (OidIsValid(s->type->decide) || OidIsValid(s->type->validate))
		decide(s, name, &state, &d);
	else
	{
		es_stream_open(&s->stream, name);
		check_stream(s);
		decide_plainly(s, &d);
	}

	if (d.nevents > 0)
		outcome->position = es_stream_append(&s->stream, d.events, d.nevents) + d.nevents - 1;
	if (state.aggregate && s->stream.version > state.version)
		es_state_appended(&state, &s->stream);
	outcome->stream = s->stream.name;
	outcome->version = s->stream.version;
	outcome->events = d.nevents;
	outcome->duplicate = false;
	es_dedup_record(&request, outcome);
	ES_FAULT("submit.recorded");
}

/*
 * es_submit(command, id, payload, command_id, expected_version, metadata)
 *
 * Submit a command to the aggregate "id" of the command's category.  Returns
 * the stream, its version, the position of the last event, the number of
 * events, and whether this was a repetition of a command_id, whose first
 * result it then is.  Errors: ES003 unknown command; 42501 not the caller's to
 * submit; ES002 rejected; ES001 not at the expected version; 23505 the
 * command_id stood for another command; and those of es_append().  Idempotency
 * keys are the field's common practice; here key and effect are one
 * transaction.
 */
Datum
es_submit(PG_FUNCTION_ARGS)
{
	EsSubmission s = {0};
	EsOutcome	outcome = {0};
	Datum		values[5];
	bool		nulls[5] = {false};

	es_check_can_append("es_submit()");
	es_check_name("command name", PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	s.type = es_command_type(text_to_cstring(PG_GETARG_TEXT_PP(0)));
	es_check_may_submit(&s.type->submitters, s.type->name);
	es_check_name("aggregate id", PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1));
	s.id = PG_GETARG_TEXT_PP(1);
	s.payload = es_object_argument(fcinfo, 2, "payload");
	s.command_id = PG_ARGISNULL(3) ? NULL : PG_GETARG_UUID_P(3);
	s.expected_version = es_expected_version(fcinfo, 4);
	s.metadata = PG_ARGISNULL(5) ? NULL : PG_GETARG_JSONB_P(5);
	submit(&s, &outcome);

	values[0] = PointerGetDatum(outcome.stream);
	values[1] = Int64GetDatum(outcome.version);
	values[2] = Int64GetDatum(outcome.position);
	nulls[2] = outcome.events == 0;
	values[3] = Int32GetDatum(outcome.events);
	values[4] = BoolGetDatum(outcome.duplicate);
	return HeapTupleGetDatum(heap_form_tuple(es_result_type(&submit_result), values, nulls));
}
