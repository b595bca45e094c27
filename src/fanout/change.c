/*-------------------------------------------------------------------------
 * change.c
 *	  Keeping and announcing what has changed in watched tables.
 *
 * The trigger of a watched table leaves the changed keys of a statement as one
 * row of es.change.  At commit the scheduler is told that there is something;
 * it takes the rows away, joins what they say, and notifies the channel of
 * each table and those of the sessions that watch one of the keys.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "commands/trigger.h"
#include "es.h"
#include "executor/executor.h"
#include "fanout/change.h"
#include "fmgr.h"
#include "guc.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "nodes/pg_list.h"
#include "store/table.h"
#include "store/wakeup.h"
#include "store/watermark.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

PG_FUNCTION_INFO_V1(es_watch_changed);

/* A message has fewer bytes than NOTIFY_PAYLOAD_MAX_LENGTH, which is private. */
#define MAX_PAYLOAD		7999

/* Keys of sessions that have ended are removed this often at most. */
#define CLEAN_INTERVAL_MS	10000

/* The keys that a statement has changed. */
typedef struct Keys
{
	int			nattrs;			/* key columns */
	AttrNumber *attrs;
	char	  **names;			/* as JSON has them */
	FmgrInfo   *to_json;
	int			n;
	int			max;
	char	  **keys;			/* as JSON objects */
	bool		many;			/* too many to name them */
} Keys;

static EsTable change_table = ES_TABLE(4, OIDOID, BOOLOID, TEXTOID, JSONBOID);

/* Whether this transaction has left something for the scheduler. */
static bool changed = false;

static EsStatement take_changes = ES_SQL(
	"WITH taken AS MATERIALIZED (DELETE FROM es.change RETURNING relation, rebuilt, channel, keys), "
	" key AS MATERIALIZED (SELECT DISTINCT t.relation, t.channel, k.key "
	"  FROM taken t, jsonb_array_elements(t.keys) k (key)), "
	" told AS ("
	"  SELECT channel, relation, rebuilt, NULL::text AS key FROM taken WHERE keys IS NULL "
	"  UNION SELECT channel, relation, false, key::text FROM key "
	"  UNION SELECT w.channel, w.relation, t.rebuilt, NULL FROM taken t "
	"    JOIN es.watched_key w ON w.relation = t.relation WHERE t.keys IS NULL "
	"  UNION SELECT w.channel, w.relation, false, k.key::text FROM key k "
	"    JOIN es.watched_key w ON w.relation = k.relation AND w.key = k.key) "
	"SELECT t.channel, t.relation::regclass::text, t.rebuilt, t.key "
	"FROM told t JOIN pg_class c ON c.oid = t.relation ORDER BY t.channel, t.relation, t.key",
	0, InvalidOid);
static EsStatement drop_changes = ES_SQL(
	"DELETE FROM es.change", 0, InvalidOid);
/* Not those that a transaction is about to delete: nobody shall hold us up. */
static EsStatement clean_keys = ES_SQL(
	"DELETE FROM es.watched_key WHERE ctid = ANY (ARRAY("
	"  SELECT w.ctid FROM es.watched_key w WHERE NOT EXISTS ("
	"    SELECT FROM pg_stat_get_activity(NULL) a "
	"    WHERE a.pid = w.pid AND a.backend_start = w.backend_start) "
	"  FOR UPDATE SKIP LOCKED))", 0, InvalidOid);

/*
 * The scheduler has something to announce.  Raises no error.
 */
static void
xact_callback(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT)
		return;
	if (changed && event == XACT_EVENT_COMMIT)
	{
		pg_atomic_write_u32(&es_database()->watched_changes, 1);
		es_wake_database(MyDatabaseId, false);
	}
	changed = false;
}

void
es_change_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
}

/*
 * Keep a change of a table; keys NULL stands for many, or for all of them where
 * it was rebuilt.
 */
void
es_change_record(Oid relid, const char *channel, Jsonb *keys, bool rebuilt)
{
	Datum		values[4];
	bool		nulls[4] = {false};
	EsWriter	writer;

	values[0] = ObjectIdGetDatum(relid);
	values[1] = BoolGetDatum(rebuilt);
	values[2] = CStringGetTextDatum(channel);
	values[3] = JsonbPGetDatum(keys);
	nulls[3] = keys == NULL;
	es_writer_open(&writer, &change_table, es_catalog()->change);
	es_writer_insert_row(&writer, values, nulls);
	es_writer_close(&writer);
	es_news_at_commit();
	changed = true;
}

/*
 * Prepare to read the key columns.  False where one of them is gone, for the
 * statement that changes the table shall not fail for that.
 */
static bool
prepare_keys(Keys *keys, Relation rel, const Trigger *trigger)
{
	memset(keys, 0, sizeof(*keys));
	keys->nattrs = trigger->tgnargs - 1;
	keys->attrs = palloc(sizeof(AttrNumber) * keys->nattrs);
	keys->names = palloc(sizeof(char *) * keys->nattrs);
	keys->to_json = palloc0(sizeof(FmgrInfo) * keys->nattrs);
	for (int i = 0; i < keys->nattrs; i++)
	{
		const char *name = trigger->tgargs[i + 1];
		StringInfoData json;
		Form_pg_attribute att;

		keys->attrs[i] = SPI_fnumber(RelationGetDescr(rel), name);
		if (keys->attrs[i] <= 0)
			return false;
		initStringInfo(&json);
		escape_json(&json, name);
		keys->names[i] = json.data;
		att = TupleDescAttr(RelationGetDescr(rel), keys->attrs[i] - 1);
		fmgr_info(F_TO_JSONB, &keys->to_json[i]);
		fmgr_info_set_expr((Node *) makeFuncExpr(F_TO_JSONB, JSONBOID,
												 list_make1(makeNullConst(att->atttypid,
																		  att->atttypmod,
																		  att->attcollation)),
												 InvalidOid, InvalidOid, COERCE_EXPLICIT_CALL),
						   &keys->to_json[i]);
	}
	/* Twice the bound, so that there is room before equal ones are dropped. */
	keys->max = es_watch_max_keys * 2;
	keys->keys = palloc(sizeof(char *) * keys->max);
	return true;
}

/*
 * The key of a row as a JSON object.
 */
static char *
key_of(Keys *keys, TupleTableSlot *row)
{
	StringInfoData json;

	initStringInfo(&json);
	for (int i = 0; i < keys->nattrs; i++)
	{
		bool		isnull;
		Datum		value = slot_getattr(row, keys->attrs[i], &isnull);

		appendStringInfo(&json, "%s%s: ", i == 0 ? "{" : ", ", keys->names[i]);
		if (isnull)
			appendStringInfoString(&json, "null");
		else
		{
			Jsonb	   *jsonb = DatumGetJsonbP(FunctionCall1(&keys->to_json[i], value));

			(void) JsonbToCString(&json, &jsonb->root, VARSIZE(jsonb));
		}
	}
	appendStringInfoChar(&json, '}');
	return json.data;
}

static int
compare_keys(const void *a, const void *b)
{
	return strcmp(*(char *const *) a, *(char *const *) b);
}

/*
 * Keep each key once.
 */
static void
drop_equal_keys(Keys *keys)
{
	int			n = 0;

	qsort(keys->keys, keys->n, sizeof(char *), compare_keys);
	for (int i = 0; i < keys->n; i++)
	{
		if (n > 0 && strcmp(keys->keys[i], keys->keys[n - 1]) == 0)
			pfree(keys->keys[i]);
		else
			keys->keys[n++] = keys->keys[i];
	}
	keys->n = n;
	keys->many = n > es_watch_max_keys;
}

/*
 * Read the keys of a transition table, until they are too many.
 */
static void
read_keys(Keys *keys, Relation rel, Tuplestorestate *rows)
{
	TupleTableSlot *slot;
	int			pointer;

	if (rows == NULL)
		return;
	/* Other triggers read the same table. */
	pointer = tuplestore_alloc_read_pointer(rows, EXEC_FLAG_REWIND);
	tuplestore_select_read_pointer(rows, pointer);
	tuplestore_rescan(rows);
	slot = MakeSingleTupleTableSlot(RelationGetDescr(rel), &TTSOpsMinimalTuple);
	while (!keys->many && tuplestore_gettupleslot(rows, true, false, slot))
	{
		CHECK_FOR_INTERRUPTS();
		if (keys->n == keys->max)
			drop_equal_keys(keys);
		if (!keys->many)
			keys->keys[keys->n++] = key_of(keys, slot);
	}
	ExecDropSingleTupleTableSlot(slot);
}

static Jsonb *
keys_as_json(const Keys *keys)
{
	StringInfoData json;

	initStringInfo(&json);
	for (int i = 0; i < keys->n; i++)
		appendStringInfo(&json, "%c%s", i == 0 ? '[' : ',', keys->keys[i]);
	appendStringInfoChar(&json, ']');
	return DatumGetJsonbP(DirectFunctionCall1(jsonb_in, CStringGetDatum(json.data)));
}

/*
 * Trigger that keeps the keys a statement has changed.  Its arguments are the
 * channel and the key columns.
 */
Datum
es_watch_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Relation	rel;
	Keys		keys;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event) || trigger->tg_trigger->tgnargs < 2)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("es.watch_changed() must be called as a trigger that es_watch() made")));
	rel = trigger->tg_relation;
	if (TRIGGER_FIRED_BY_TRUNCATE(trigger->tg_event) ||
		!prepare_keys(&keys, rel, trigger->tg_trigger))
	{
		es_change_record(RelationGetRelid(rel), trigger->tg_trigger->tgargs[0], NULL, false);
		return PointerGetDatum(NULL);
	}
	read_keys(&keys, rel, trigger->tg_oldtable);
	read_keys(&keys, rel, trigger->tg_newtable);
	if (!keys.many)
		drop_equal_keys(&keys);
	if (keys.n > 0)
		es_change_record(RelationGetRelid(rel), trigger->tg_trigger->tgargs[0],
						 keys.many ? NULL : keys_as_json(&keys), false);
	return PointerGetDatum(NULL);
}

/*
 * Whether there may be something to announce.
 */
bool
es_changes_pending(void)
{
	return pg_atomic_read_u32(&es_database()->watched_changes) != 0;
}

/*
 * Say so, or that what there was is about to be announced.
 */
void
es_changes_expect(bool expected)
{
	pg_atomic_write_u32(&es_database()->watched_changes, expected ? 1 : 0);
	pg_memory_barrier();
}

/*
 * Begin a message about a table.
 */
static void
begin_message(StringInfo message, const char *table, const char *what)
{
	resetStringInfo(message);
	appendStringInfoString(message, "{\"read_model\":");
	escape_json(message, table);
	appendStringInfo(message, ",\"%s\":", what);
}

/*
 * Tell a channel what has changed in a table, in as many messages as it takes.
 * False where a key is too long for any.
 */
static bool
tell_keys(const char *channel, const char *table, List *keys)
{
	StringInfoData message;
	bool		empty = true;
	ListCell   *cell;

	initStringInfo(&message);
	begin_message(&message, table, "keys");
	foreach(cell, keys)
		if (message.len + strlen(lfirst(cell)) + strlen("[]}") > MAX_PAYLOAD)
			return false;
	foreach(cell, keys)
	{
		char	   *key = lfirst(cell);

		if (!empty && message.len + strlen(key) + strlen(",]}") > MAX_PAYLOAD)
		{
			appendStringInfoString(&message, "]}");
			Async_Notify(channel, message.data);
			begin_message(&message, table, "keys");
			empty = true;
		}
		appendStringInfo(&message, "%c%s", empty ? '[' : ',', key);
		empty = false;
	}
	appendStringInfoString(&message, "]}");
	Async_Notify(channel, message.data);
	return true;
}

static void
tell(const char *channel, const char *table, List *keys, bool rebuilt, bool many)
{
	StringInfoData message;

	/* What NOTIFY would refuse would hold up all announcements. */
	if (channel[0] == '\0' || strlen(channel) >= NAMEDATALEN)
		return;
	if (!rebuilt && !many && list_length(keys) <= es_watch_max_keys &&
		tell_keys(channel, table, keys))
		return;
	initStringInfo(&message);
	begin_message(&message, table, rebuilt ? "rebuilt" : "many");
	appendStringInfoString(&message, "true}");
	Async_Notify(channel, message.data);
}

/*
 * Tell the channels what the rows of take_changes say, which come sorted by
 * channel and table.
 */
static void
tell_all(uint64 n)
{
	uint64		i = 0;

	while (i < n)
	{
		char	   *channel = es_spi_text(i, 1);
		char	   *table = es_spi_text(i, 2);
		List	   *keys = NIL;
		bool		rebuilt = false;
		bool		many = false;

		for (; i < n && strcmp(channel, es_spi_text(i, 1)) == 0 &&
			 strcmp(table, es_spi_text(i, 2)) == 0; i++)
		{
			bool		isnull;
			char	   *key = es_spi_text(i, 4);

			rebuilt = rebuilt || DatumGetBool(es_spi_value(i, 3, &isnull));
			if (key)
				keys = lappend(keys, key);
			else
				many = true;
		}
		tell(channel, table, keys, rebuilt, many);
	}
}

/*
 * Forget the keys of sessions that have ended, now and then.
 */
static void
clean(void)
{
	static TimestampTz cleaned_at = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (!TimestampDifferenceExceeds(cleaned_at, now, CLEAN_INTERVAL_MS))
		return;
	cleaned_at = now;
	(void) es_run(&clean_keys, NULL, NULL);
}

/*
 * Announce, when the current transaction commits, what has changed in watched
 * tables; or drop it silently.
 */
void
es_changes_announce(bool silently)
{
	EsSpi		spi;

	es_spi_begin(&spi);
	clean();
	if (silently)
		(void) es_run(&drop_changes, NULL, NULL);
	else
		tell_all(es_run(&take_changes, NULL, NULL));
	es_spi_end(&spi);
}
