/*-------------------------------------------------------------------------
 * append.c
 *	  Writing events: the one path into the log.
 *
 * An appender takes the stream's lock and keeps it to the end of its
 * transaction, reads the version under the lock, and only then takes its
 * positions.  So appenders of one stream queue instead of failing, versions
 * have no gap, and within a stream positions rise with versions.
 *
 * The stream's lock is a lock on the "object" whose class is es.event and
 * whose id is a hash of the name; two streams with one hash merely queue.
 * A transaction that touches more than es.max_stream_locks streams locks
 * es.event itself against other appenders, all of which hold ROW EXCLUSIVE
 * there before they look at a stream.
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
#include "common/hashfn.h"
#include "es.h"
#include "executor/executor.h"
#include "fault.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "store/append.h"
#include "store/identity.h"
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

static EsTable event_table = ES_TABLE(EVENT_COLUMNS,
									  INT8OID, INT8OID, TIMESTAMPTZOID, TEXTOID,
									  TEXTOID, TEXTOID, JSONBOID, JSONBOID);
static EsTable tag_table = ES_TABLE(2, TEXTOID, INT8OID);

/* Stream locks of this transaction; reset when another transaction looks. */
static int	nlocks = 0;
static LocalTransactionId nlocks_of = InvalidLocalTransactionId;

/* Counts the appends of this session; see check_not_appended(). */
static uint64 appends = 0;

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
				 errhint("Give a name of 1 to %d bytes.", ES_MAX_NAME)));
	if (VARSIZE_ANY_EXHDR(name) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must not be empty", what),
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
static text *
category_of(const text *stream)
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
 * Lock the stream to the end of the transaction.  The caller has es.event open
 * with RowExclusiveLock.
 */
static void
lock_stream(Oid event, const text *stream)
{
	uint64		hash = hash_bytes_extended((const unsigned char *) VARDATA_ANY(stream),
										   VARSIZE_ANY_EXHDR(stream), 0);
	LOCKTAG		tag;

	if (nlocks_of != ES_MY_LXID)
	{
		nlocks_of = ES_MY_LXID;
		nlocks = 0;
	}
	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, event, (uint32) hash,
					   (uint16) (hash >> 32));
	if (nlocks >= es_max_stream_locks && !es_lock_held(&tag, ExclusiveLock))
		LockRelationOid(event, ShareRowExclusiveLock);
	else if (LockAcquire(&tag, ExclusiveLock, false, false) == LOCKACQUIRE_OK)
		nlocks++;
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
 * The version of a locked stream: what its newest event has.  The index is
 * locked as the append that follows will want it.
 */
static int64
read_version(Relation rel, const text *stream)
{
	Relation	index = index_open(es_catalog()->event_stream, RowExclusiveLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ScanKeyData key;
	int64		version = 0;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(stream));
	if (es_index_find_in(rel, index, &key, 1, BackwardScanDirection, slot))
	{
		bool		isnull;

		check_not_moved(rel, slot, stream);
		version = DatumGetInt64(slot_getattr(slot, EVENT_VERSION + 1, &isnull));
	}
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	return version;
}

/*
 * Refuse to append where that cannot be: on a standby, in a read-only
 * transaction, in a parallel worker.
 */
static void
check_can_append(void)
{
	(void) es_database();
	PreventCommandIfReadOnly("es_append()");
	PreventCommandDuringRecovery("es_append()");
	PreventCommandIfParallelMode("es_append()");
}

/*
 * Lock a stream to the end of the transaction and learn its version.
 */
void
es_stream_open(EsStream *stream, text *name)
{
	Relation	rel;

	check_can_append();
	es_check_name("stream name", name);
	stream->name = name;
	stream->category = category_of(name);

	rel = relation_open(es_catalog()->event, RowExclusiveLock);
	lock_stream(RelationGetRelid(rel), name);
	stream->version = read_version(rel, name);
	stream->seen = appends;
	relation_close(rel, NoLock);
	ES_FAULT("append.locked");
}

/*
 * Our own lock does not keep ourselves out: what runs between opening a stream
 * and appending to it, such as a validator, may append to it too.
 */
static void
check_not_appended(const EsStream *stream)
{
	Relation	rel;
	int64		version;

	if (stream->seen == appends)
		return;
	rel = relation_open(es_catalog()->event, RowExclusiveLock);
	version = read_version(rel, stream->name);
	relation_close(rel, NoLock);
	if (version != stream->version)
		ereport(ERROR,
				(errcode(ERRCODE_TRIGGERED_DATA_CHANGE_VIOLATION),
				 errmsg("stream \"%s\" was appended to by what decides about it",
						text_to_cstring(stream->name)),
				 errdetail("It was at version " INT64_FORMAT " when the command began and is at " INT64_FORMAT " now.",
						   stream->version, version),
				 errhint("Validators look and raise; let them append nothing to the command's own stream.")));
}

/*
 * Refuse to go on with a stream that is not at the version the caller expects.
 */
void
es_stream_expect(const EsStream *stream, int64 expected_version)
{
	if (expected_version == ES_ANY_VERSION ||
		expected_version == stream->version)
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
static Jsonb *
effective_metadata(Jsonb *metadata)
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
				 errhint("Leave it out, or give an empty object.")));
	es_check_object("payload", event->payload);
	event->metadata = effective_metadata(event->metadata);
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

static int
compare_texts(const void *a, const void *b)
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
	qsort(tags, n, sizeof(Datum), compare_texts);
	for (int i = 0; i < n; i++)
	{
		Datum		values[2];
		bool		nulls[2] = {false, false};

		if (i > 0 && compare_texts(&tags[i - 1], &tags[i]) == 0)
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

/*
 * Fill a slot with the row of an event.
 */
static void
fill_slot(TupleTableSlot *slot, const EsStream *stream, const EsEvent *event,
		  int64 position, int64 version, TimestampTz now)
{
	ExecClearTuple(slot);
	memset(slot->tts_isnull, 0, EVENT_COLUMNS * sizeof(bool));
	slot->tts_values[EVENT_POSITION] = Int64GetDatum(position);
	slot->tts_values[EVENT_VERSION] = Int64GetDatum(version);
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
 * Write at most CHUNK events from a first position and version on.
 */
static void
append_chunk(EsWriter *writer, TupleTableSlot **slots, const EsStream *stream,
			 const EsEvent *events, int nevents, int64 position, int64 version,
			 TimestampTz now)
{
	for (int i = 0; i < nevents; i++)
		fill_slot(slots[i], stream, &events[i], position + i, version + i, now);
	es_writer_insert(writer, slots, nevents);
}

/*
 * Write any number of events, chunk by chunk, each in fresh memory.
 */
static void
append_chunks(EsWriter *writer, TupleTableSlot **slots, const EsStream *stream,
			  const EsEvent *events, int nevents, int64 position, int64 version,
			  TimestampTz now)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "es append",
												  ALLOCSET_DEFAULT_SIZES);

	for (int done = 0; done < nevents; done += CHUNK)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		CHECK_FOR_INTERRUPTS();
		append_chunk(writer, slots, stream, events + done,
					 Min(CHUNK, nevents - done), position + done,
					 version + done, now);
		MemoryContextSwitchTo(old);
		MemoryContextReset(context);
	}
	MemoryContextDelete(context);
}

/*
 * Write events from a first position on, at the next versions of the stream.
 */
static void
append_rows(const EsStream *stream, const EsEvent *events, int nevents,
			int64 position)
{
	TimestampTz now = GetCurrentTimestamp();
	int64		version = stream->version + 1;
	int			nslots = Min(nevents, CHUNK);
	TupleTableSlot **slots = palloc(sizeof(TupleTableSlot *) * nslots);
	EsWriter	writer;

	es_writer_open(&writer, &event_table, es_catalog()->event);
	for (int i = 0; i < nslots; i++)
		slots[i] = es_slot_for_writing(&writer);
	if (nevents <= CHUNK)
		append_chunk(&writer, slots, stream, events, nevents, position, version, now);
	else
		append_chunks(&writer, slots, stream, events, nevents, position, version, now);
	for (int i = 0; i < nslots; i++)
		ExecDropSingleTupleTableSlot(slots[i]);
	es_writer_close(&writer);
	pfree(slots);
}

/*
 * Append events to an open stream at its next versions and return the first of
 * their consecutive positions; the stream moves to its new version.
 */
int64
es_stream_append(EsStream *stream, EsEvent *events, int nevents)
{
	int64		first;

	Assert(nevents > 0);
	for (int i = 0; i < nevents; i++)
		check_event(&events[i]);
	es_identity_establish();
	check_not_appended(stream);
	first = es_take_positions(nevents);
	ES_FAULT("append.positions");
	append_rows(stream, events, nevents, first);
	ES_FAULT("append.rows");
	append_tags(events, nevents, first);
	stream->version += nevents;
	stream->seen = ++appends;
	if (es_after_append)
		es_after_append(stream, events, nevents, first);
	ES_FAULT("append.done");
	return first;
}
