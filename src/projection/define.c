/*-------------------------------------------------------------------------
 * define.c
 *	  Defining projections: es_create_projection(), es_drop_projection(),
 *	  es_pause() and es_resume().
 *
 * Locks come in this order, here and in all that changes a projection: its row
 * in es.projection, its checkpoints, es.event.  So a change waits for a batch
 * under way and nothing is applied while it is made; each counts up the
 * revision, by which a worker sees that it holds an old definition.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "projection/apply.h"
#include "projection/define.h"
#include "projection/rebuild.h"
#include "projection/registry.h"
#include "projection/sync.h"
#include "storage/lmgr.h"
#include "store/append.h"
#include "store/identity.h"
#include "store/watermark.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(es_create_projection);
PG_FUNCTION_INFO_V1(es_drop_projection);
PG_FUNCTION_INFO_V1(es_pause);
PG_FUNCTION_INFO_V1(es_resume);

/* The arguments of es_create_projection(). */
enum
{
	ARG_NAME,
	ARG_QUERY,
	ARG_CATEGORIES,
	ARG_TYPES,
	ARG_MODE,
	ARG_PARTITIONS,
	ARG_BATCH_SIZE,
	ARG_TABLES,
	ARG_START_AFTER,
	ARG_ON_ERROR,
	ARG_KEYS,
	ARGS
};

static EsStatement insert_projection = ES_SQL(
	"WITH p AS (INSERT INTO es.projection (name, query, categories, types, mode, partitions, "
	"  batch_size, tables, start_after, on_error, keys, owner, search_path) "
	" VALUES ($1, $2, $3, $4, 'async', $5, $6, $7, $8, $9, $10, $11, $12) "
	" ON CONFLICT DO NOTHING RETURNING name, partitions, start_after) "
	"INSERT INTO es.checkpoint (projection, partition, position) "
	"SELECT name, n, start_after FROM p, generate_series(0, p.partitions - 1) n",
	12, TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT4OID, INT4OID, REGCLASSARRAYOID,
	INT8OID, TEXTOID, TEXTARRAYOID, REGROLEOID, TEXTOID);
static EsStatement lock_projection = ES_SQL(
	"SELECT owner FROM es.projection WHERE name = $1 FOR NO KEY UPDATE", 1, TEXTOID);
static EsStatement lock_checkpoints = ES_SQL(
	"SELECT FROM es.checkpoint WHERE projection = $1 AND rebuild = 0 "
	"ORDER BY partition FOR UPDATE", 1, TEXTOID);
static EsStatement revise = ES_SQL(
	"UPDATE es.checkpoint SET revision = revision + 1 WHERE projection = $1 AND rebuild = 0",
	1, TEXTOID);
static EsStatement delete_projection = ES_SQL(
	"WITH c AS (DELETE FROM es.checkpoint WHERE projection = $1), "
	"  l AS (DELETE FROM es.dead_letter WHERE projection = $1), "
	"  r AS (DELETE FROM es.rebuild WHERE projection = $1), "
	"  e AS (DELETE FROM es.projection_error WHERE projection = $1) "
	"DELETE FROM es.projection WHERE name = $1", 1, TEXTOID);
static EsStatement pause_projection = ES_SQL(
	"UPDATE es.projection SET paused = true WHERE name = $1", 1, TEXTOID);
static EsStatement resume_projection = ES_SQL(
	"UPDATE es.projection SET paused = false WHERE name = $1", 1, TEXTOID);
static EsStatement select_sync_skip = ES_SQL(
	"SELECT FROM es.projection WHERE name = $1 AND mode = 'sync' AND on_error = 'skip'", 1, TEXTOID);
static EsStatement forget_errors = ES_SQL(
	"UPDATE es.checkpoint SET retries = 0, error_at = NULL, error = NULL, "
	"  error_sqlstate = NULL, error_position = NULL "
	"WHERE projection = $1 AND (rebuild = 0 OR error IS NOT NULL)", 1, TEXTOID);
static EsStatement other_declaring = ES_SQL(
	"SELECT p.name, t::text FROM es.projection p, unnest(p.tables) t "
	"WHERE t = ANY ($2) AND p.name <> $1 LIMIT 1",
	2, TEXTOID, REGCLASSARRAYOID);

void
es_projection_missing(const char *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("projection \"%s\" does not exist", name),
			 errhint("See es_projections for what there is.")));
}

/*
 * What a statement of a projection's query would be called where it is not
 * allowed, or NULL.  SELECT ... INTO makes a table, the second time in vain.
 */
static const char *
refused_statement(Node *statement)
{
	SelectStmt *select;

	switch (nodeTag(statement))
	{
		case T_SelectStmt:
			select = (SelectStmt *) statement;
			while (select->larg)
				select = select->larg;
			return select->intoClause ? "SELECT INTO" : NULL;
		case T_InsertStmt:
		case T_UpdateStmt:
		case T_DeleteStmt:
		case T_MergeStmt:
			return NULL;
		default:
			return CreateCommandName(statement);
	}
}

/*
 * Only statements that read or write rows: a projection's transaction is the
 * worker's to begin and end, and utility commands can be wrapped in a function
 * where they really are meant.
 */
static void
check_statements(const char *query)
{
	List	   *statements = raw_parser(query, RAW_PARSE_DEFAULT);
	ListCell   *cell;

	if (statements == NIL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the query of a projection must not be empty"),
				 errhint("Give SQL over es_batch, for example INSERT INTO ... SELECT ... FROM es_batch.")));
	foreach(cell, statements)
	{
		const char *refused = refused_statement(lfirst_node(RawStmt, cell)->stmt);

		if (refused)
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("%s is not allowed in the query of a projection", refused),
					 errdetail("A projection's query is made of SELECT, INSERT, UPDATE, DELETE and MERGE."),
					 errhint("The worker begins and ends the transaction; it commits read model and checkpoint together.")));
	}
}

static void
warn_unless_batch_is_read(SPIPlanPtr plan)
{
	ListCell   *cell;

	foreach(cell, SPI_plan_get_plan_sources(plan))
	{
		CachedPlanSource *source = (CachedPlanSource *) lfirst(cell);

		/* The view stands for the table once the rewriter was at it. */
		if (list_member_oid(source->relationOids, es_catalog()->event))
			return;
	}
	ereport(WARNING,
			(errmsg("the query of the projection does not read es_batch"),
			 errdetail("It would do the same for every batch, whatever is in it."),
			 errhint("A function can read es_batch too; then this is as it should be.")));
}

/*
 * The query must parse, and find its tables and functions, as its owner.
 */
void
es_projection_check_query(const char *query)
{
	SPIPlanPtr	plan;

	check_statements(query);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	plan = SPI_prepare(query, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	warn_unless_batch_is_read(plan);
	SPI_freeplan(plan);
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/*
 * A list of names must have no NULL and no empty one.
 */
static void
check_names(FunctionCallInfo fcinfo, int arg, const char *what)
{
	Datum	   *values;
	bool	   *nulls;
	int			n;

	if (PG_ARGISNULL(arg))
		return;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(arg), TEXTOID, -1, false,
					  TYPALIGN_INT, &values, &nulls, &n);
	for (int i = 0; i < n; i++)
		es_check_name(what, nulls[i] ? NULL : DatumGetTextPP(values[i]));
}

/*
 * One of the words that an option can be.
 */
void
es_check_word(const char *value, const char *option, const char *one,
			  const char *other)
{
	if (strcmp(value, one) != 0 && strcmp(value, other) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for \"%s\": \"%s\"", option, value),
				 errhint("It must be '%s' or '%s'.", one, other)));
}

static char *
word_argument(FunctionCallInfo fcinfo, int arg)
{
	return PG_ARGISNULL(arg) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(arg));
}

void
es_check_partitions(int partitions)
{
	if (partitions < 1 || partitions > ES_MAX_PARTITIONS)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("partitions must be between 1 and %d", ES_MAX_PARTITIONS),
				 errdetail("It is %d.", partitions)));
}

/*
 * A table that can be declared: one that is stored here and stays.
 */
static void
check_table(Oid relid)
{
	char		kind = OidIsValid(relid) ? get_rel_relkind(relid) : '\0';

	if (kind == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("a table of the projection does not exist"),
				 errhint("List the tables that the query writes.")));
	if (kind != RELKIND_RELATION && kind != RELKIND_PARTITIONED_TABLE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a table", get_rel_name(relid)),
				 errhint("List the tables that the query writes.")));
	if (get_rel_persistence(relid) == RELPERSISTENCE_TEMP)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("temporary table \"%s\" cannot be a read model", get_rel_name(relid)),
				 errdetail("The worker would not see it.")));
	if (get_rel_namespace(relid) == get_namespace_oid("es", false))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_TABLE_DEFINITION),
				 errmsg("table \"es.%s\" cannot be a read model", get_rel_name(relid))));
}

/*
 * The key column of a table, which says to which stream a row belongs.
 */
static void
check_key(Oid relid, const char *column)
{
	if (get_attnum(relid, column) <= 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_COLUMN),
				 errmsg("column \"%s\" of table \"%s\" does not exist",
						column, get_rel_name(relid)),
				 errhint("keys has, for each table in tables, the column that holds the stream.")));
}

static void
check_tables(FunctionCallInfo fcinfo)
{
	Datum	   *tables = NULL;
	Datum	   *keys = NULL;
	bool	   *nulls;
	bool	   *key_nulls = NULL;
	int			n = 0;
	int			nkeys = 0;

	if (!PG_ARGISNULL(ARG_TABLES))
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_TABLES), REGCLASSOID, sizeof(Oid),
						  true, TYPALIGN_INT, &tables, &nulls, &n);
	if (!PG_ARGISNULL(ARG_KEYS))
		deconstruct_array(PG_GETARG_ARRAYTYPE_P(ARG_KEYS), TEXTOID, -1, false,
						  TYPALIGN_INT, &keys, &key_nulls, &nkeys);
	for (int i = 0; i < n; i++)
		check_table(nulls[i] ? InvalidOid : DatumGetObjectId(tables[i]));
	if (keys && nkeys != n)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("keys must have one column for each table in tables"),
				 errdetail("There are %d tables and %d keys.", n, nkeys)));
	for (int i = 0; i < nkeys; i++)
		check_key(DatumGetObjectId(tables[i]),
				  key_nulls[i] ? "" : TextDatumGetCString(keys[i]));
}

static void
check_numbers(FunctionCallInfo fcinfo)
{
	es_check_partitions(PG_ARGISNULL(ARG_PARTITIONS) ? 0 : PG_GETARG_INT32(ARG_PARTITIONS));
	if (!PG_ARGISNULL(ARG_BATCH_SIZE) && PG_GETARG_INT32(ARG_BATCH_SIZE) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be at least 1"),
				 errdetail("It is %d.", PG_GETARG_INT32(ARG_BATCH_SIZE)),
				 errhint("Give NULL to go by es.batch_size.")));
	if (PG_ARGISNULL(ARG_START_AFTER) || PG_GETARG_INT64(ARG_START_AFTER) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("start_after must be a position, or 0 for the whole log")));
}

static void
check_definition(FunctionCallInfo fcinfo)
{
	es_check_name("projection name", PG_ARGISNULL(ARG_NAME) ? NULL : PG_GETARG_TEXT_PP(ARG_NAME));
	if (PG_ARGISNULL(ARG_QUERY))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the query of a projection must not be null")));
	check_names(fcinfo, ARG_CATEGORIES, "category");
	check_names(fcinfo, ARG_TYPES, "event type");
	es_check_word(word_argument(fcinfo, ARG_MODE), "mode", "async", "sync");
	es_check_word(word_argument(fcinfo, ARG_ON_ERROR), "on_error", "stop", "skip");
	check_numbers(fcinfo);
	check_tables(fcinfo);
	es_check_worker_role(GetUserId(), "own a projection",
						 "The worker connects as the projection's owner.");
	es_projection_check_query(text_to_cstring(PG_GETARG_TEXT_PP(ARG_QUERY)));
}

/*
 * A table belongs to one projection at most.  Keeps others from defining one
 * until the end of the transaction.
 */
static void
check_tables_are_free(Datum name, Datum tables)
{
	Datum		values[2] = {name, tables};
	EsSpi		spi;

	LockRelationOid(es_catalog()->projection, ShareRowExclusiveLock);
	es_spi_begin(&spi);
	if (es_run(&other_declaring, values, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("table \"%s\" belongs to projection \"%s\"",
						es_spi_text(0, 2), es_spi_text(0, 1)),
				 errhint("Each read model is kept by one projection: put both queries into it, or declare other tables.")));
	es_spi_end(&spi);
}

static void
insert_definition(FunctionCallInfo fcinfo)
{
	static const int args[] = {ARG_NAME, ARG_QUERY, ARG_CATEGORIES, ARG_TYPES,
		ARG_PARTITIONS, ARG_BATCH_SIZE, ARG_TABLES, ARG_START_AFTER,
	ARG_ON_ERROR, ARG_KEYS};
	Datum		values[12];
	char		nulls[] = "            ";
	EsSpi		spi;

	for (int i = 0; i < (int) lengthof(args); i++)
	{
		values[i] = PG_ARGISNULL(args[i]) ? (Datum) 0 : PG_GETARG_DATUM(args[i]);
		if (PG_ARGISNULL(args[i]))
			nulls[i] = 'n';
	}
	values[10] = ObjectIdGetDatum(GetUserId());
	values[11] = CStringGetTextDatum(GetConfigOption("search_path", false, false));

	es_spi_begin(&spi);
	if (es_run(&insert_projection, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("projection \"%s\" already exists",
						TextDatumGetCString(values[0])),
				 errhint("Drop it first with es_drop_projection().")));
	es_spi_end(&spi);
}

/*
 * What a synchronous projection cannot apply is not appended, so there are no
 * dead letters to keep.
 */
void
es_projection_check_modes(Datum name)
{
	EsSpi		spi;

	es_spi_begin(&spi);
	if (es_run(&select_sync_skip, &name, NULL) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a synchronous projection cannot skip events"),
				 errdetail("An event that it cannot apply is not appended."),
				 errhint("Use on_error => 'stop', or mode => 'async'.")));
	es_spi_end(&spi);
}

/*
 * es_create_projection(name, query, categories, types, mode, partitions,
 *						batch_size, tables, start_after, on_error, keys)
 *
 * Keep read models by running the query, SQL over es_batch, for each batch of
 * events behind start_after that pass the filters, as the calling role and
 * with its present search_path.  batch_size is the number of positions in a
 * batch (NULL: es.batch_size).  tables are those that the query writes, and
 * keys, for each, the column with the stream; es_rebuild() needs to know.
 * Errors: 42710 where it exists, 55006 for a table of another projection,
 * 55000 for a synchronous one that would make appenders wait for long, those
 * of the query, 0A000 for utility commands in it, 22023, 22004 and 42622
 * on bad arguments.  Batches are PgQ's idea; that of SQL over a relation that
 * holds just the new rows is that of transition tables.
 */
Datum
es_create_projection(PG_FUNCTION_ARGS)
{
	(void) es_database();
	check_definition(fcinfo);
	es_identity_establish();
	if (!PG_ARGISNULL(ARG_TABLES))
		check_tables_are_free(PG_GETARG_DATUM(ARG_NAME), PG_GETARG_DATUM(ARG_TABLES));
	insert_definition(fcinfo);
	if (strcmp(word_argument(fcinfo, ARG_MODE), "sync") == 0)
		es_projection_make_sync(PG_GETARG_DATUM(ARG_NAME));
	es_projection_check_modes(PG_GETARG_DATUM(ARG_NAME));
	es_projections_changed();
	PG_RETURN_VOID();
}

/*
 * Lock a projection, which must exist and be the caller's, and its
 * checkpoints: until the end of the transaction nobody applies or changes it.
 */
void
es_projection_lock(Datum name)
{
	Oid			user = GetUserId();
	bool		isnull;
	EsSpi		spi;

	es_spi_begin(&spi);
	if (es_run(&lock_projection, &name, NULL) == 0)
		es_projection_missing(TextDatumGetCString(name));
	if (!has_privs_of_role(user, DatumGetObjectId(es_spi_value(0, 1, &isnull))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of projection \"%s\"", TextDatumGetCString(name))));
	(void) es_run(&lock_checkpoints, &name, NULL);
	es_spi_end(&spi);
}

/*
 * The same for a function that will apply events in this session: returns the
 * partitions.
 */
List *
es_projection_open(Datum name, const char *function)
{
	(void) es_database();
	if (IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("%s cannot be used in a REPEATABLE READ or SERIALIZABLE transaction",
						function),
				 errdetail("Its snapshot does not see all that the projection has applied."),
				 errhint("Use READ COMMITTED.")));
	es_projection_lock(name);
	return es_projection_partitions(TextDatumGetCString(name));
}

static void
run(EsStatement *statement, Datum name)
{
	EsSpi		spi;

	es_spi_begin(&spi);
	(void) es_run(statement, &name, NULL);
	es_spi_end(&spi);
}

/*
 * Let a projection that stopped try again at once.
 */
void
es_projection_forget_errors(Datum name)
{
	run(&forget_errors, name);
}

/*
 * Something about a locked projection has changed: workers must learn it anew.
 */
void
es_projection_revise(Datum name)
{
	run(&revise, name);
	es_projections_changed();
}

/*
 * Lock the projection that the first argument names, and return the name.
 */
static Datum
locked_argument(FunctionCallInfo fcinfo)
{
	es_check_name("projection name", PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	es_projection_lock(PG_GETARG_DATUM(0));
	return PG_GETARG_DATUM(0);
}

/* es_drop_projection(name): stop and forget it; waits for a batch under way. */
Datum
es_drop_projection(PG_FUNCTION_ARGS)
{
	Datum		name = locked_argument(fcinfo);

	es_rebuild_cancel(name);
	run(&delete_projection, name);
	es_projections_changed();
	PG_RETURN_VOID();
}

/*
 * es_pause(name): let it rest where it is; waits for a batch under way.  A
 * synchronous one cannot rest, for it would miss events.
 */
Datum
es_pause(PG_FUNCTION_ARGS)
{
	Datum		name = locked_argument(fcinfo);

	if (es_projection_is_sync(name))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("synchronous projection \"%s\" cannot be paused",
						TextDatumGetCString(name)),
				 errdetail("It is applied by whoever appends."),
				 errhint("Make it asynchronous first, with es_alter_projection(name, mode => 'async').")));
	run(&pause_projection, name);
	es_projection_revise(name);
	PG_RETURN_VOID();
}

/* es_resume(name): let it go on, or try again at once where it stopped. */
Datum
es_resume(PG_FUNCTION_ARGS)
{
	Datum		name = locked_argument(fcinfo);

	run(&resume_projection, name);
	es_projection_forget_errors(name);
	es_projection_revise(name);
	PG_RETURN_VOID();
}
