/*-------------------------------------------------------------------------
 * dedup.c
 *	  One command id, one effect: the log of commands and appends that came
 *	  with an id.
 *
 * The result is written in the transaction of its events, so both are there or
 * neither.  The id is locked to the end of the transaction before it is looked
 * up: of two sessions that retry at once, the second waits and gets the first
 * one's result.  As with streams, a transaction with more than
 * es.max_stream_locks ids locks es.command_log itself instead of one more,
 * against all others, who hold ROW EXCLUSIVE there before they lock an id.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "store/dedup.h"
#include "common/hashfn.h"
#include "es.h"
#include "executor/executor.h"
#include "guc.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "store/held.h"
#include "store/table.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/timestamp.h"

/* The columns of es.command_log. */
enum
{
	LOG_ID,
	LOG_POSITION,
	LOG_VERSION,
	LOG_SUBMITTED_AT,
	LOG_FINGERPRINT,
	LOG_EVENTS,
	LOG_COMMAND,
	LOG_STREAM,
	LOG_COLUMNS
};

static EsTable log_table = ES_TABLE(LOG_COLUMNS,
									UUIDOID, INT8OID, INT8OID, TIMESTAMPTZOID,
									INT8OID, INT4OID, TEXTOID, TEXTOID);

static EsStatement prune_log = ES_SQL(
	"DELETE FROM es.command_log WHERE command_id IN ("
	"  SELECT command_id FROM es.command_log WHERE submitted_at < $1 "
	"  ORDER BY submitted_at LIMIT $2)",
	2, TIMESTAMPTZOID, INT8OID);

/* Locks on ids of this transaction. */
static EsHeld id_locks;

/*
 * Lock an id to the end of the transaction.  The caller has es.command_log open
 * with RowExclusiveLock.
 */
static void
lock_id(Oid log, pg_uuid_t *id)
{
	uint64		hash = hash_bytes_extended(id->data, UUID_LEN, 0);
	LOCKTAG		tag;

	SET_LOCKTAG_OBJECT(tag, MyDatabaseId, log, (uint32) hash,
					   (uint16) (hash >> 32));
	if (es_held(&id_locks) >= es_max_stream_locks &&
		!es_lock_held(&tag, ExclusiveLock))
		LockRelationOid(log, ShareRowExclusiveLock);
	else if (LockAcquire(&tag, ExclusiveLock, false, false) == LOCKACQUIRE_OK)
		es_held_add(&id_locks);
}

/*
 * A hash of a value and a seed, which may be the fingerprint of another one.
 */
int64
es_fingerprint(Jsonb *value, int64 seed)
{
	return DatumGetInt64(DirectFunctionCall2(jsonb_hash_extended,
											 JsonbPGetDatum(value),
											 Int64GetDatum(seed)));
}

int64
es_fingerprint_text(const text *value, int64 seed)
{
	return (int64) hash_bytes_extended((const unsigned char *) VARDATA_ANY(value),
									   VARSIZE_ANY_EXHDR(value), (uint64) seed);
}

/*
 * The same id must stand for the same request.
 */
static void
check_same(const EsRequest *request, TupleTableSlot *slot)
{
	char	   *old_command = TextDatumGetCString(slot->tts_values[LOG_COMMAND]);
	char	   *old_stream = TextDatumGetCString(slot->tts_values[LOG_STREAM]);
	bool		same_target = strcmp(old_command, request->name) == 0 &&
		strcmp(old_stream, text_to_cstring(request->stream)) == 0;

	if (same_target &&
		DatumGetInt64(slot->tts_values[LOG_FINGERPRINT]) == request->fingerprint)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("command id %s was used for another command",
					DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(request->id)))),
			 errdetail("It was \"%s\" on stream \"%s\"%s.", old_command, old_stream,
					   same_target ? ", with another payload" : ""),
			 errhint("Give every command an id of its own, and repeat it only to retry the same command.")));
}

/*
 * Lock a request's id and look it up.  True, with the first outcome, where the
 * request was there before; an error where the id stood for another one.
 */
bool
es_dedup_find(const EsRequest *request, EsOutcome *outcome)
{
	const EsCatalog *catalog = es_catalog();
	Relation	rel;
	TupleTableSlot *slot;
	ScanKeyData key;
	bool		found;

	if (request->id == NULL)
		return false;
	rel = table_open(catalog->command_log, RowExclusiveLock);
	slot = table_slot_create(rel, NULL);
	lock_id(catalog->command_log, request->id);
	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_UUID_EQ, UUIDPGetDatum(request->id));
	found = es_index_find(rel, catalog->command_log_id, &key, 1,
						  ForwardScanDirection, slot);
	if (found)
	{
		slot_getallattrs(slot);
		check_same(request, slot);
		outcome->stream = DatumGetTextPCopy(slot->tts_values[LOG_STREAM]);
		outcome->position = DatumGetInt64(slot->tts_values[LOG_POSITION]);
		outcome->version = DatumGetInt64(slot->tts_values[LOG_VERSION]);
		outcome->events = DatumGetInt32(slot->tts_values[LOG_EVENTS]);
		outcome->duplicate = true;
	}
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	return found;
}

/*
 * Record what a request led to, under the id that es_dedup_find() locked.
 */
void
es_dedup_record(const EsRequest *request, const EsOutcome *outcome)
{
	Datum		values[LOG_COLUMNS];
	bool		nulls[LOG_COLUMNS] = {false};
	EsWriter	writer;

	if (request->id == NULL)
		return;
	values[LOG_ID] = UUIDPGetDatum(request->id);
	values[LOG_POSITION] = Int64GetDatum(outcome->position);
	nulls[LOG_POSITION] = outcome->events == 0;
	values[LOG_VERSION] = Int64GetDatum(outcome->version);
	values[LOG_SUBMITTED_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[LOG_FINGERPRINT] = Int64GetDatum(request->fingerprint);
	values[LOG_EVENTS] = Int32GetDatum(outcome->events);
	values[LOG_COMMAND] = CStringGetTextDatum(request->name);
	values[LOG_STREAM] = PointerGetDatum(request->stream);

	es_writer_open(&writer, &log_table, es_catalog()->command_log);
	es_writer_insert_row(&writer, values, nulls);
	es_writer_close(&writer);
}

/*
 * Forget ids that are older than es.command_retention, at most so many.
 * Returns how many.
 */
int64
es_dedup_prune(int64 max_count)
{
	Datum		values[2];
	uint64		n;
	EsSpi		spi;

	if (es_command_retention == 0)
		return 0;
	values[0] = TimestampTzGetDatum(GetCurrentTimestamp() -
									(TimestampTz) es_command_retention * USECS_PER_SEC);
	values[1] = Int64GetDatum(max_count);
	es_spi_begin(&spi);
	n = es_run(&prune_log, values, NULL);
	es_spi_end(&spi);
	return (int64) n;
}
