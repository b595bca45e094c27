/*-------------------------------------------------------------------------
 * append.c
 *	  Writing events: the one path into the log.
 *
 * An appender takes the stream's lock and keeps it to the end of its
 * transaction, reads the version under the lock, and only then takes its
 * positions.  So appenders of one stream queue instead of failing, versions
 * have no gap, and within a stream positions rise with versions.
 *
 * The locks are those of lock.c.  A tagged event takes the locks of its tags,
 * too, before it takes a position; condition.c says why.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog.h"
#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "executor/executor.h"
#include "fault.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "store/append.h"
#include "store/hint.h"
#include "store/identity.h"
#include "store/lock.h"
#include "store/table.h"
#include "store/watermark.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

/* The columns of es.event. */
enum
{
	EVENT_POSITION,
	EVENT_VERSION,
	EVENT_RECORDED_AT,
	EVENT_STREAM,
	EVENT_CATEGORY,
	EVENT_TYPE,
	EVENT_PAYLOAD,
	EVENT_METADATA,
	EVENT_COLUMNS
};

/* Rows that one call of the access method gets at most. */
#define CHUNK	256

EsAfterAppend es_after_append = NULL;
bool		es_append_refused = false;

static EsTable event_table = ES_TABLE(EVENT_COLUMNS,
									  INT8OID, INT8OID, TIMESTAMPTZOID, TEXTOID,
									  TEXTOID, TEXTOID, JSONBOID, JSONBOID);
static EsTable tag_table = ES_TABLE(2, TEXTOID, INT8OID);

/* What a user's function is just called for, or NULL; see es_deciding_begin(). */
static const char *deciding = NULL;

/*
 * Refuse a name that is missing, empty or too long.  "what" is what it names,
 * as the message has it.
 */
void
es_check_name(const char *what, const text *name)
{
	if (name == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what),
				 errdetail("It is NULL."),
				 errhint("Give a name of 1 to %d bytes.", ES_MAX_NAME)));
	if (VARSIZE_ANY_EXHDR(name) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", what),
				 errdetail("It has 0 bytes; the least is 1."),
				 errhint("Give a name of 1 to %d bytes.", ES_MAX_NAME)));
	if (VARSIZE_ANY_EXHDR(name) > ES_MAX_NAME)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("%s is too long", what),
				 errdetail("It has %d bytes; the limit is %d.",
						   (int) VARSIZE_ANY_EXHDR(name), ES_MAX_NAME),
				 errhint("Use a shorter name, and put what it says into the payload.")));
}

/*
 * The category of a stream: what stands before its first "-".
 */
text *
es_category_of(const text *stream)
{
	const char *name = VARDATA_ANY(stream);
	int			len = VARSIZE_ANY_EXHDR(stream);
	const char *dash = memchr(name, '-', len);

	if (dash == name)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("stream \"%s\" has no category",
						text_to_cstring(stream)),
				 errdetail("The category is what stands before the first \"-\"."),
				 errhint("Name streams like \"customer-23\".")));
	return cstring_to_text_with_len(name, dash ? (int) (dash - name) : len);
}

/*
 * In REPEATABLE READ and above, an event that our snapshot does not see means
 * that the stream moved under us.
 */
static void
check_not_moved(Relation rel, TupleTableSlot *slot, const text *stream)
{
	bool		isnull;
	TransactionId xmin;

	if (!IsolationUsesXactSnapshot())
		return;
	xmin = DatumGetTransactionId(slot_getsysattr(slot, MinTransactionIdAttributeNumber,
												 &isnull));
	if (TransactionIdIsCurrentTransactionId(xmin))
		return;
	if (!table_tuple_satisfies_snapshot(rel, slot, GetTransactionSnapshot()))
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent append"),
				 errdetail("Stream \"%s\" moved after this transaction began.",
						   text_to_cstring(stream)),
				 errhint("Retry the transaction.")));
}

/*
 * Find the newest event of a stream by the hint that its last appender left;
 * hint.c says why the row can be believed.
 */
static bool
find_by_hint(Relation rel, const text *stream, TupleTableSlot *slot)
{
	ItemPointerData row;
	int64		version;
	bool		isnull;

	return es_hint_get(stream, &row, &version) &&
		es_table_fetch(rel, &row, SnapshotSelf, slot) &&
		DatumGetInt64(slot_getattr(slot, EVENT_VERSION + 1, &isnull)) == version &&
		DatumGetBool(DirectFunctionCall2Coll(texteq, C_COLLATION_OID,
											 slot_getattr(slot, EVENT_STREAM + 1, &isnull),
											 PointerGetDatum(stream)));
}

/*
 * Find it in the index, which is locked as the append that follows will want it.
 */
static bool
find_by_index(Relation rel, const text *stream, TupleTableSlot *slot)
{
	Relation	index = index_open(es_catalog()->event_stream, RowExclusiveLock);
	ScanKeyData key;
	bool		found;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_TEXTEQ, PointerGetDatum(stream));
	found = es_index_find_in(rel, index, &key, 1, BackwardScanDirection, slot);
	index_close(index, NoLock);
	return found;
}

/*
 * The version of a locked stream: what its newest event has.
 */
static void
read_version(Relation rel, EsStream *stream, bool by_hint)
{
	TupleTableSlot *slot = table_slot_create(rel, NULL);

	stream->version = 0;
	stream->position = 0;
	if ((by_hint && find_by_hint(rel, stream->name, slot)) ||
		find_by_index(rel, stream->name, slot))
	{
		bool		isnull;

		check_not_moved(rel, slot, stream->name);
		stream->version = DatumGetInt64(slot_getattr(slot, EVENT_VERSION + 1, &isnull));
		stream->position = DatumGetInt64(slot_getattr(slot, EVENT_POSITION + 1, &isnull));
	}
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * A user's function is about to be called; returns what es_deciding_end()
 * needs, which must be called also after an error.
 */
const char *
es_deciding_begin(const char *what)
{
	const char *previous = deciding;

	deciding = what;
	return previous;
}

void
es_deciding_end(const char *previous)
{
	deciding = previous;
}

bool
es_deciding(void)
{
	return deciding != NULL;
}

/*
 * Refuse what cannot be on a standby, in a read-only transaction, or in a
 * parallel worker.
 */
void
es_check_can_lock(const char *function)
{
	(void) es_database();
	PreventCommandIfReadOnly(function);
	PreventCommandDuringRecovery(function);
	PreventCommandIfParallelMode(function);
	if (es_append_refused)
		ereport(ERROR,
				(errcode(ERRCODE_ES_CANNOT_REBUILD),
				 errmsg("%s cannot be called by a projection that is being rebuilt", function),
				 errdetail("It would take effect once more for events that were applied long ago."),
				 errhint("Call es_cancel_rebuild(), and keep what appends in a projection without tables.")));
}

/*
 * The same for an append, which is refused inside a function that decides, too.
 */
void
es_check_can_append(const char *function)
{
	es_check_can_lock(function);
	if (deciding)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s cannot be called inside %s", function, deciding),
				 errdetail("What is being decided on must not change under the decision."),
				 errhint("Return the events from a decider, or submit the further command from a projection.")));
}

/*
 * Lock a stream to the end of the transaction and learn its version.  False
 * where it would have to wait for the lock and must not.
 */
static bool
open_stream(EsStream *stream, text *name, bool wait)
{
	Relation	rel;
	bool		locked;

	es_check_can_append("es_append()");
	es_check_name("stream name", name);
	stream->name = name;
	stream->category = es_category_of(name);

	rel = relation_open(es_catalog()->event, RowExclusiveLock);
	locked = es_lock_stream(name, wait);
	if (locked)
		read_version(rel, stream, true);
	relation_close(rel, NoLock);
	return locked;
}

void
es_stream_open(EsStream *stream, text *name)
{
	(void) open_stream(stream, name, true);
	ES_FAULT("append.locked");
}

bool
es_stream_try_open(EsStream *stream, text *name)
{
	return open_stream(stream, name, false);
}

/*
 * Refuse to go on with a stream that is not at the version the caller expects.
 */
void
es_stream_expect(EsStream *stream, int64 expected_version)
{
	Relation	rel;

	if (expected_version == ES_ANY_VERSION ||
		expected_version == stream->version)
		return;
	/* What a hint said is not enough to refuse an append. */
	rel = relation_open(es_catalog()->event, NoLock);
	read_version(rel, stream, false);
	relation_close(rel, NoLock);
	if (expected_version == stream->version)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_ES_VERSION_CONFLICT),
			 errmsg("stream \"%s\" is not at the expected version",
					text_to_cstring(stream->name)),
			 errdetail("Expected version " INT64_FORMAT ", actual version " INT64_FORMAT ".",
					   expected_version, stream->version),
			 errhint("Read the stream again, decide again, and retry with its version.")));
}

/*
 * A payload or metadata must be a JSON object of bounded size.
 */
void
es_check_object(const char *what, const Jsonb *value)
{
	if (!JB_ROOT_IS_OBJECT(value))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s of an event must be a JSON object", what),
				 errdetail("It is %s.",
						   JB_ROOT_IS_SCALAR(value) ? "a scalar" : "an array"),
				 errhint("Wrap the value, for example {\"value\": ...}.")));
	if (VARSIZE_ANY(value) > es_max_payload_size)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("%s of an event is too large", what),
				 errdetail("It has %d bytes; es.max_payload_size is %d.",
						   (int) VARSIZE_ANY(value), es_max_payload_size),
				 errhint("Keep large documents elsewhere and refer to them, or raise es.max_payload_size.")));
}

/*
 * The session's metadata (es.metadata) as a value, or NULL.  Parsed once for
 * each value of the setting.
 */
static Jsonb *
session_metadata(void)
{
	static uint64 generation = 0;
	static Jsonb *parsed = NULL;

	if (generation != es_metadata_generation)
	{
		Jsonb	   *old = parsed;

		parsed = NULL;
		if (old)
			pfree(old);
		if (es_metadata[strspn(es_metadata, " \t\r\n")] != '\0')
		{
			Jsonb	   *value = DatumGetJsonbP(DirectFunctionCall1(jsonb_in,
																   CStringGetDatum(es_metadata)));

			parsed = MemoryContextAlloc(TopMemoryContext, VARSIZE(value));
			memcpy(parsed, value, VARSIZE(value));
		}
		generation = es_metadata_generation;
	}
	return parsed;
}

/*
 * The metadata to store: the session's, overridden key by key by the event's.
 */
Jsonb *
es_effective_metadata(Jsonb *metadata)
{
	Jsonb	   *session = session_metadata();

	if (metadata)
		es_check_object("metadata", metadata);
	if (session && metadata)
		metadata = DatumGetJsonbP(DirectFunctionCall2(jsonb_concat,
													  JsonbPGetDatum(session),
													  JsonbPGetDatum(metadata)));
	else if (session)
		metadata = session;
	if (metadata)
		es_check_object("metadata", metadata);
	return metadata;
}

/*
 * Check everything that can be wrong with an event before anything is locked
 * further or written.
 */
static void
check_event(EsEvent *event)
{
	es_check_name("event type", event->type);
	if (event->payload == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("payload of an event must not be null"),
				 errdetail("It is NULL."),
				 errhint("Leave it out, or give an empty object.")));
	es_check_object("payload", event->payload);
	event->metadata = es_effective_metadata(event->metadata);
	if (event->tags)
	{
		Datum	   *tags;
		bool	   *nulls;
		int			n;

		deconstruct_array(event->tags, TEXTOID, -1, false, TYPALIGN_INT,
						  &tags, &nulls, &n);
		for (int i = 0; i < n; i++)
			es_check_name("tag", nulls[i] ? NULL : DatumGetTextPP(tags[i]));
	}
}

int
es_compare_texts(const void *a, const void *b)
{
	return DatumGetInt32(DirectFunctionCall2Coll(bttextcmp, C_COLLATION_OID,
												 *(const Datum *) a,
												 *(const Datum *) b));
}

/*
 * Write the rows of es.tag for an event at a position, each tag once.
 */
static void
insert_tags(EsWriter *writer, ArrayType *array, int64 position)
{
	Datum	   *tags;
	int			n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &tags, NULL, &n);
	qsort(tags, n, sizeof(Datum), es_compare_texts);
	for (int i = 0; i < n; i++)
	{
		Datum		values[2];
		bool		nulls[2] = {false, false};

		if (i > 0 && es_compare_texts(&tags[i - 1], &tags[i]) == 0)
			continue;
		values[0] = tags[i];
		values[1] = Int64GetDatum(position);
		es_writer_insert_row(writer, values, nulls);
	}
}

static void
append_tags(const EsEvent *events, int nevents, int64 first)
{
	EsWriter	writer;
	bool		open = false;

	for (int i = 0; i < nevents; i++)
	{
		if (events[i].tags == NULL)
			continue;
		if (!open)
			es_writer_open(&writer, &tag_table, es_catalog()->tag);
		open = true;
		insert_tags(&writer, events[i].tags, first + i);
	}
	if (open)
		es_writer_close(&writer);
}

static inline EsStream *
stream_of(const EsEvent *event, EsStream *stream)
{
	return event->stream ? event->stream : stream;
}

/*
 * Fill a slot with the row of an event, which moves its stream on.
 */
static void
fill_slot(TupleTableSlot *slot, EsStream *stream, const EsEvent *event,
		  int64 position, TimestampTz now)
{
	stream->version++;
	stream->position = position;

	ExecClearTuple(slot);
	memset(slot->tts_isnull, 0, EVENT_COLUMNS * sizeof(bool));
	slot->tts_values[EVENT_POSITION] = Int64GetDatum(position);
	slot->tts_values[EVENT_VERSION] = Int64GetDatum(stream->version);
	slot->tts_values[EVENT_RECORDED_AT] = TimestampTzGetDatum(now);
	slot->tts_values[EVENT_STREAM] = PointerGetDatum(stream->name);
	slot->tts_values[EVENT_CATEGORY] = PointerGetDatum(stream->category);
	slot->tts_values[EVENT_TYPE] = PointerGetDatum(event->type);
	slot->tts_values[EVENT_PAYLOAD] = JsonbPGetDatum(event->payload);
	slot->tts_values[EVENT_METADATA] = JsonbPGetDatum(event->metadata);
	slot->tts_isnull[EVENT_METADATA] = event->metadata == NULL;
	ExecStoreVirtualTuple(slot);
}

/*
 * Leave the row of each stream's newest event to the next who append to them, or,
 * where the rows could not be written, nothing.
 */
static void
leave_hints(TupleTableSlot **slots, EsStream *stream, const EsEvent *events,
			int nevents, bool written)
{
	for (int i = 0; i < nevents; i++)
	{
		const EsStream *s = stream_of(&events[i], stream);

		if (i < nevents - 1 && stream_of(&events[i + 1], stream) == s)
			continue;
		if (written)
			es_hint_put(s->name, &slots[i]->tts_tid,
						DatumGetInt64(slots[i]->tts_values[EVENT_VERSION]));
		else
			es_hint_take_away(s->name);
	}
}

/*
 * Write at most CHUNK events from a first position on.
 */
static void
append_chunk(EsWriter *writer, TupleTableSlot **slots, EsStream *stream,
			 const EsEvent *events, int nevents, int64 position, TimestampTz now)
{
	for (int i = 0; i < nevents; i++)
		fill_slot(slots[i], stream_of(&events[i], stream), &events[i],
				  position + i, now);
	PG_TRY();
	{
		es_writer_insert(writer, slots, nevents);
	}
	PG_CATCH();
	{
		leave_hints(slots, stream, events, nevents, false);
		PG_RE_THROW();
	}
	PG_END_TRY();
	leave_hints(slots, stream, events, nevents, true);
}

/*
 * Write any number of events, chunk by chunk, each in fresh memory.
 */
static void
append_chunks(EsWriter *writer, TupleTableSlot **slots, EsStream *stream,
			  const EsEvent *events, int nevents, int64 position, TimestampTz now)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "es append",
												  ALLOCSET_DEFAULT_SIZES);

	for (int done = 0; done < nevents; done += CHUNK)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		CHECK_FOR_INTERRUPTS();
		append_chunk(writer, slots, stream, events + done,
					 Min(CHUNK, nevents - done), position + done, now);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	MemoryContextDelete(context);
}

/*
 * Write events from a first position on, each at the next version of its
 * stream.
 */
static void
append_rows(EsStream *stream, const EsEvent *events, int nevents,
			int64 position)
{
	TimestampTz now = GetCurrentTimestamp();
	int			nslots = Min(nevents, CHUNK);
	TupleTableSlot **slots = palloc(sizeof(TupleTableSlot *) * nslots);
	EsWriter	writer;

	es_writer_open(&writer, &event_table, es_catalog()->event);
	for (int i = 0; i < nslots; i++)
		slots[i] = es_slot_for_writing(&writer);
	if (nevents <= CHUNK)
		append_chunk(&writer, slots, stream, events, nevents, position, now);
	else
		append_chunks(&writer, slots, stream, events, nevents, position, now);
	for (int i = 0; i < nslots; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
	es_writer_close(&writer);
	pfree(slots);
}

/*
 * Refuse events that are none.
 */
void
es_events_check(EsEvent *events, int nevents)
{
	for (int i = 0; i < nevents; i++)
		check_event(&events[i]);
}

/*
 * Add the locks of the events' tags to a list.
 */
void
es_events_tag_locks(EsTagLocks *list, const EsEvent *events, int nevents)
{
	for (int i = 0; i < nevents; i++)
	{
		Datum	   *tags;
		int			n;

		if (events[i].tags == NULL)
			continue;
		deconstruct_array(events[i].tags, TEXTOID, -1, false, TYPALIGN_INT,
						  &tags, NULL, &n);
		for (int j = 0; j < n; j++)
		{
			es_tag_locks_add(list, DatumGetTextPP(tags[j]), NULL, ShareLock);
			es_tag_locks_add(list, DatumGetTextPP(tags[j]), events[i].type, ShareLock);
		}
	}
}

/*
 * Lock the tags of events, as es_stream_append() does.
 */
void
es_events_lock_tags(const EsEvent *events, int nevents)
{
	EsTagLocks	locks = {0};

	es_events_tag_locks(&locks, events, nevents);
	es_tag_locks_take(&locks);
}

/*
 * Append events to an open stream, or those that name one to theirs, at the
 * next versions, and return the first of their consecutive positions.
 */
int64
es_stream_append(EsStream *stream, EsEvent *events, int nevents)
{
	int64		first;

	Assert(nevents > 0);
	es_events_check(events, nevents);
	es_events_lock_tags(events, nevents);
	es_identity_establish();
	first = es_take_positions(nevents);
	ES_FAULT("append.positions");
	append_rows(stream, events, nevents, first);
	ES_FAULT("append.rows");
	append_tags(events, nevents, first);
	if (es_after_append)
		es_after_append(stream, events, nevents, first);
	ES_FAULT("append.done");
	return first;
}
