/*-------------------------------------------------------------------------
 * watch.c
 *	  Watching read models: es_watch(), es_watch_key(), and the triggers that
 *	  keep what has changed.
 *
 * A watched table has statement triggers with transition tables, so a batch of
 * ten thousand rows costs one pass over them.  The triggers are the definition
 * of the watch too: their arguments are the channel and the key columns, and
 * they go with the table wherever it goes.
 *
 * The transaction that changes the table may be anybody's, and an appending
 * one, so it does not notify: it leaves one row for each statement in
 * es.change, and the scheduler announces what these say (see change.c).
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_trigger.h"
#include "catalog/pg_type.h"
#include "commands/trigger.h"
#include "es.h"
#include "fanout/change.h"
#include "fanout/channel.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "store/identity.h"
#include "store/watermark.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/jsonb.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(es_watch);
PG_FUNCTION_INFO_V1(es_unwatch);
PG_FUNCTION_INFO_V1(es_watch_key);
PG_FUNCTION_INFO_V1(es_unwatch_key);
PG_FUNCTION_INFO_V1(es_watches);
PG_FUNCTION_INFO_V1(es_rebuilt);

/* The longest key that can be watched, in its text form. */
#define MAX_WATCHED_KEY	2000

/* A trigger for each kind of change: its name, when, and what it refers to. */
static const struct
{
	const char *name;
	const char *event;
	const char *referencing;
}			triggers[] =
{
	{"es_watch_insert", "INSERT", "REFERENCING NEW TABLE AS es_new"},
	{"es_watch_update", "UPDATE", "REFERENCING OLD TABLE AS es_old NEW TABLE AS es_new"},
	{"es_watch_delete", "DELETE", "REFERENCING OLD TABLE AS es_old"},
	{"es_watch_truncate", "TRUNCATE", ""},
};

static EsStatement insert_key = ES_SQL(
	"INSERT INTO es.watched_key (relation, key, pid, backend_start, channel) "
	"SELECT $1, $2, a.pid, a.backend_start, $3 FROM pg_stat_get_activity(pg_backend_pid()) a "
	"ON CONFLICT DO NOTHING", 3, OIDOID, JSONBOID, TEXTOID);
static EsStatement delete_key = ES_SQL(
	"DELETE FROM es.watched_key WHERE relation = $1 AND key = $2 AND channel = $3",
	3, OIDOID, JSONBOID, TEXTOID);
static EsStatement delete_keys = ES_SQL(
	"DELETE FROM es.watched_key WHERE relation = $1", 1, OIDOID);

/*
 * Whether a trigger is ours, and not one of that name that somebody made.
 */
static bool
is_watch(const Trigger *trigger)
{
	char	   *function;

	if (strcmp(trigger->tgname, triggers[0].name) != 0 || trigger->tgnargs < 2 ||
		get_func_namespace(trigger->tgfoid) != get_namespace_oid("es", false))
		return false;
	function = get_func_name(trigger->tgfoid);
	return function != NULL && strcmp(function, "watch_changed") == 0;
}

/*
 * The trigger of a watched table that tells channel and key columns, or NULL.
 */
static Trigger *
find_watch(Relation rel)
{
	for (int i = 0; rel->trigdesc && i < rel->trigdesc->numtriggers; i++)
		if (is_watch(&rel->trigdesc->triggers[i]))
			return &rel->trigdesc->triggers[i];
	return NULL;
}

static Oid
relation_argument(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("read_model must not be null")));
	return PG_GETARG_OID(0);
}

/*
 * Open the table to watch, or to watch no more.
 */
static Relation
open_own_table(Oid relid, LOCKMODE lock)
{
	Relation	rel = relation_open(relid, lock);

	if (rel->rd_rel->relkind != RELKIND_RELATION &&
		rel->rd_rel->relkind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" cannot be watched", RelationGetRelationName(rel)),
				 errdetail("Only tables can."),
				 errhint("Watch the tables that it is made of.")));
	if (!es_owns_relation(relid))
		aclcheck_error(ACLCHECK_NOT_OWNER, OBJECT_TABLE, RelationGetRelationName(rel));
	if (rel->rd_rel->relpersistence == RELPERSISTENCE_TEMP ||
		RelationGetNamespace(rel) == get_namespace_oid("es", false))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("\"%s\" cannot be watched", RelationGetRelationName(rel)),
				 errdetail("It is a temporary table or one of the extension itself."),
				 errhint("Channels tell of new events; see es_create_channel().")));
	return rel;
}

/*
 * Append the key columns as trigger arguments, each a column of the table and
 * named once.
 */
static void
append_key_columns(StringInfo arguments, Relation rel, ArrayType *array)
{
	Datum	   *names;
	bool	   *nulls;
	int			n;

	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &names, &nulls, &n);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("key_columns must not be empty"),
				 errhint("Name the columns that tell the rows apart, for example those of the primary key.")));
	for (int i = 0; i < n; i++)
	{
		char	   *name = nulls[i] ? NULL : TextDatumGetCString(names[i]);

		if (name == NULL || get_attnum(RelationGetRelid(rel), name) <= 0)
			ereport(ERROR,
					(errcode(ERRCODE_UNDEFINED_COLUMN),
					 errmsg("column \"%s\" of relation \"%s\" does not exist",
							name ? name : "null", RelationGetRelationName(rel))));
		for (int j = 0; j < i; j++)
			if (strcmp(name, TextDatumGetCString(names[j])) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_DUPLICATE_COLUMN),
						 errmsg("column \"%s\" is named twice in key_columns", name)));
		appendStringInfo(arguments, ", %s", quote_literal_cstr(name));
	}
}

/*
 * Create the triggers of a table with these arguments, or drop them (NULL).
 * The caller has locked the table, so its name stays.
 */
static void
change_triggers(Relation rel, const char *arguments)
{
	char	   *table = quote_qualified_identifier(get_namespace_name(RelationGetNamespace(rel)),
												   RelationGetRelationName(rel));
	EsSpi		spi;

	es_spi_begin(&spi);
	for (int i = 0; i < (int) lengthof(triggers); i++)
	{
		char	   *command = arguments
			? psprintf("CREATE TRIGGER %s AFTER %s ON %s %s FOR EACH STATEMENT EXECUTE FUNCTION es.watch_changed(%s)",
					   triggers[i].name, triggers[i].event, table,
					   triggers[i].referencing, arguments)
			: psprintf("DROP TRIGGER IF EXISTS %s ON %s", triggers[i].name, table);
		int			result = SPI_execute(command, false, 0);

		if (result < 0)
			elog(ERROR, "SPI_execute failed: %s", SPI_result_code_string(result));
	}
	es_spi_end(&spi);
}

/*
 * es_watch(read_model, key_columns, channel)
 *
 * Announce the keys of a table that change on a channel (NULL: the table's
 * name), which is returned.  The caller must own the table.  Errors: 42710
 * where it is watched already, 42703 and 42701 on bad key columns, 42809 where
 * it is no table, 22023, 22004, 42622 and 42939 on bad names.  The idea is
 * that of Oracle's Continuous Query Notification.
 */
Datum
es_watch(PG_FUNCTION_ARGS)
{
	Oid			relid = relation_argument(fcinfo);
	Relation	rel;
	char	   *channel;
	StringInfoData arguments;

	(void) es_database();
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("key_columns must not be null")));
	rel = open_own_table(relid, ShareRowExclusiveLock);
	channel = PG_ARGISNULL(2) ? pstrdup(RelationGetRelationName(rel))
		: text_to_cstring(PG_GETARG_TEXT_PP(2));
	es_check_channel_name(channel);
	if (find_watch(rel))
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("\"%s\" is watched already", RelationGetRelationName(rel)),
				 errdetail("Its changes are announced on channel \"%s\".",
						   find_watch(rel)->tgargs[0]),
				 errhint("Call es_unwatch() first to change that.")));

	initStringInfo(&arguments);
	appendStringInfoString(&arguments, quote_literal_cstr(channel));
	append_key_columns(&arguments, rel, PG_GETARG_ARRAYTYPE_P(1));
	es_identity_establish();
	change_triggers(rel, arguments.data);
	relation_close(rel, NoLock);
	PG_RETURN_TEXT_P(cstring_to_text(channel));
}

static void
not_watched(Relation rel)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("\"%s\" is not watched", RelationGetRelationName(rel)),
			 errhint("See es_watches for what is, and es_watch() to watch it.")));
}

/*
 * es_unwatch(read_model): listeners stay, and hear no more.
 */
Datum
es_unwatch(PG_FUNCTION_ARGS)
{
	Relation	rel = open_own_table(relation_argument(fcinfo), AccessExclusiveLock);
	Datum		key = ObjectIdGetDatum(RelationGetRelid(rel));
	EsSpi		spi;

	if (find_watch(rel) == NULL)
		not_watched(rel);
	change_triggers(rel, NULL);
	es_spi_begin(&spi);
	(void) es_run(&delete_keys, &key, NULL);
	es_spi_end(&spi);
	relation_close(rel, NoLock);
	PG_RETURN_VOID();
}

/*
 * Whether a value of a key may be what the column's values look like in JSON.
 */
static bool
fits_column(Relation rel, const char *column, const JsonbValue *value)
{
	AttrNumber	number = get_attnum(RelationGetRelid(rel), column);
	char		category;
	bool		preferred;

	if (number <= 0 || value->type == jbvNull || value->type == jbvBinary)
		return true;
	get_type_category_preferred(getBaseType(get_atttype(RelationGetRelid(rel), number)),
								&category, &preferred);
	switch (category)
	{
		case TYPCATEGORY_NUMERIC:
			return value->type == jbvNumeric;
		case TYPCATEGORY_BOOLEAN:
			return value->type == jbvBool;
		case TYPCATEGORY_USER:
			return true;
		default:
			return value->type == jbvString;
	}
}

/*
 * A key to watch is an object with the key columns of the watch and no more.
 */
static Jsonb *
key_argument(FunctionCallInfo fcinfo, Relation rel)
{
	Trigger    *watch = find_watch(rel);
	Jsonb	   *key = PG_ARGISNULL(1) ? NULL : PG_GETARG_JSONB_P(1);
	bool		fits;

	if (watch == NULL)
		not_watched(rel);
	fits = key && JB_ROOT_IS_OBJECT(key) && JB_ROOT_COUNT(key) == watch->tgnargs - 1;
	for (int i = 1; fits && i < watch->tgnargs; i++)
	{
		JsonbValue	buffer;
		JsonbValue *value = getKeyJsonValueFromContainer(&key->root, watch->tgargs[i],
														 strlen(watch->tgargs[i]), &buffer);

		fits = value && fits_column(rel, watch->tgargs[i], value);
	}
	if (!fits)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("not a key of \"%s\"", RelationGetRelationName(rel)),
				 errdetail("A key is an object with a value, as to_jsonb() makes it, for each of its key columns; see es_watches."),
				 errhint("For example {\"%s\": ...}.", watch->tgargs[1])));
	if (VARSIZE_ANY(key) > MAX_WATCHED_KEY)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("the key is too large to be watched"),
				 errdetail("It has %d bytes; the limit is %d.",
						   (int) VARSIZE_ANY(key), MAX_WATCHED_KEY)));
	return key;
}

/*
 * The channel of this session, the same for all its keys.
 */
static char *
session_channel(void)
{
	return psprintf("es_session_%d_" UINT64_FORMAT, MyProcPid,
					(uint64) MyStartTimestamp);
}

/*
 * Begin or stop to watch a key.
 */
static char *
change_watched_key(FunctionCallInfo fcinfo, EsStatement *statement)
{
	Oid			relid = relation_argument(fcinfo);
	Relation	rel = relation_open(relid, AccessShareLock);
	Datum		values[3];
	EsSpi		spi;

	if (pg_class_aclcheck(relid, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, RelationGetRelationName(rel));
	values[0] = ObjectIdGetDatum(relid);
	values[1] = JsonbPGetDatum(key_argument(fcinfo, rel));
	values[2] = CStringGetTextDatum(session_channel());
	es_spi_begin(&spi);
	(void) es_run(statement, values, NULL);
	es_spi_end(&spi);
	relation_close(rel, NoLock);
	return session_channel();
}

/*
 * es_watch_key(read_model, key)
 *
 * Announce changes of one key of a watched table to this session, until it
 * ends.  Returns the channel to LISTEN on, the same for all keys of a session.
 * Errors: 42704 where the table is not watched, 22023 where it is no key of
 * it, 42501 for who may not read the table.
 */
Datum
es_watch_key(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(change_watched_key(fcinfo, &insert_key)));
}

/* es_unwatch_key(read_model, key) */
Datum
es_unwatch_key(PG_FUNCTION_ARGS)
{
	(void) change_watched_key(fcinfo, &delete_key);
	PG_RETURN_VOID();
}

/*
 * Put the watch of a table into the result of es.watches().
 */
static void
put_watch(ReturnSetInfo *rsinfo, Relation rel)
{
	Trigger    *watch = find_watch(rel);
	Datum	   *columns;
	Datum		values[3];
	bool		nulls[3] = {false};

	if (watch == NULL)
		return;
	columns = palloc(sizeof(Datum) * watch->tgnargs);
	for (int i = 1; i < watch->tgnargs; i++)
		columns[i - 1] = CStringGetTextDatum(watch->tgargs[i]);
	values[0] = ObjectIdGetDatum(RelationGetRelid(rel));
	values[1] = PointerGetDatum(construct_array(columns, watch->tgnargs - 1, TEXTOID,
												-1, false, TYPALIGN_INT));
	values[2] = CStringGetTextDatum(watch->tgargs[0]);
	tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
}

/*
 * es.watches(): the tables that are watched.
 */
Datum
es_watches(PG_FUNCTION_ARGS)
{
	Relation	triggers_rel = table_open(TriggerRelationId, AccessShareLock);
	SysScanDesc scan = systable_beginscan(triggers_rel, InvalidOid, false, NULL, 0, NULL);
	HeapTuple	tuple;

	InitMaterializedSRF(fcinfo, 0);
	while ((tuple = systable_getnext(scan)) != NULL)
	{
		Form_pg_trigger trigger = (Form_pg_trigger) GETSTRUCT(tuple);
		Relation	rel;

		if (strcmp(NameStr(trigger->tgname), triggers[0].name) != 0)
			continue;
		rel = try_relation_open(trigger->tgrelid, AccessShareLock);
		if (rel == NULL)
			continue;
		put_watch((ReturnSetInfo *) fcinfo->resultinfo, rel);
		relation_close(rel, AccessShareLock);
	}
	systable_endscan(scan);
	table_close(triggers_rel, AccessShareLock);
	return (Datum) 0;
}

/*
 * es.rebuilt(read_model): the table was built anew, past the triggers.  If it is
 * watched, tell the listeners when the current transaction commits.
 */
Datum
es_rebuilt(PG_FUNCTION_ARGS)
{
	Relation	rel = open_own_table(relation_argument(fcinfo), AccessShareLock);
	Trigger    *watch = find_watch(rel);

	if (watch)
		es_change_record(RelationGetRelid(rel), watch->tgargs[0], NULL, true);
	relation_close(rel, NoLock);
	PG_RETURN_VOID();
}
