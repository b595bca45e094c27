/*-------------------------------------------------------------------------
 * registry.c
 *	  Defining projections: es_create_projection(), es_drop_projection(),
 *	  es_pause() and es_resume().
 *
 * Every change is counted at commit, by which the workers learn of it, and
 * wakes them.  The relcache invalidation of es.projection tells the session
 * that makes the change, and everybody where the table itself is replaced.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "parser/parser.h"
#include "projection/apply.h"
#include "projection/registry.h"
#include "store/append.h"
#include "store/identity.h"
#include "store/watermark.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"
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
	ARG_ON_ERROR
};

static EsStatement insert_projection = ES_SQL(
	"WITH p AS (INSERT INTO es.projection (name, query, categories, types, mode, batch_size, "
	"  tables, start_after, owner, search_path, partitions, on_error) "
	" VALUES ($1, $2, $3, $4, 'async', $5, $6, $7, $8, $9, 1, 'stop') "
	" ON CONFLICT DO NOTHING RETURNING name, start_after) "
	"INSERT INTO es.checkpoint (projection, partition, position) "
	"SELECT name, 0, start_after FROM p",
	9, TEXTOID, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT4OID, REGCLASSARRAYOID, INT8OID, REGROLEOID, TEXTOID);
static EsStatement owner_of_projection = ES_SQL(
	"SELECT owner FROM es.projection WHERE name = $1 FOR UPDATE", 1, TEXTOID);
static EsStatement delete_projection = ES_SQL(
	"DELETE FROM es.projection WHERE name = $1", 1, TEXTOID);
static EsStatement pause_projection = ES_SQL(
	"UPDATE es.projection SET paused = true WHERE name = $1", 1, TEXTOID);
static EsStatement resume_projection = ES_SQL(
	"WITH c AS (UPDATE es.checkpoint SET retries = 0, error_at = NULL, error = NULL, "
	"  error_sqlstate = NULL, error_position = NULL WHERE projection = $1) "
	"UPDATE es.projection SET paused = false WHERE name = $1", 1, TEXTOID);
static EsStatement select_projections = ES_SQL(
	"SELECT p.name, p.query, p.search_path, p.categories, p.types, p.batch_size, "
	"  c.position, c.retries, c.error_at "
	"FROM es.projection p JOIN es.checkpoint c ON c.projection = p.name "
	"WHERE p.owner = $1 AND NOT p.paused ORDER BY p.name",
	1, REGROLEOID);
static EsStatement select_owners = ES_SQL(
	"SELECT DISTINCT p.owner::oid FROM es.projection p JOIN pg_roles r ON r.oid = p.owner "
	"WHERE NOT p.paused", 0, InvalidOid);

/* Counts the invalidations of es.projection that this session has heard of. */
static uint64 generation = 1;

static void
count_change(Datum arg, Oid relid)
{
	const EsCatalog *catalog = es_catalog_cached();

	if (relid == InvalidOid || catalog == NULL || relid == catalog->projection)
		generation++;
}

void
es_projection_registry_init(void)
{
	CacheRegisterRelcacheCallback(count_change, (Datum) 0);
}

/*
 * Rises whenever the definitions may have changed.  Up to date once a
 * transaction has begun; take it before the snapshot that reads them.
 */
uint64
es_projections_generation(void)
{
	return generation + es_changes();
}

static void
projections_changed(void)
{
	CacheInvalidateRelcacheByRelid(es_catalog()->projection);
	es_wake_at_commit();
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
		RawStmt    *raw = lfirst_node(RawStmt, cell);

		switch (nodeTag(raw->stmt))
		{
			case T_SelectStmt:
			case T_InsertStmt:
			case T_UpdateStmt:
			case T_DeleteStmt:
			case T_MergeStmt:
				break;
			default:
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("%s is not allowed in the query of a projection",
								CreateCommandName(raw->stmt)),
						 errdetail("A projection's query is made of SELECT, INSERT, UPDATE, DELETE and MERGE."),
						 errhint("The worker begins and ends the transaction; it commits read model and checkpoint together.")));
		}
	}
}

/*
 * The query must parse, and find its tables and functions, as its owner.
 */
static void
check_query(const char *name, const char *query)
{
	SPIPlanPtr	plan;

	check_statements(query);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	plan = SPI_prepare(query, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	SPI_freeplan(plan);
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/*
 * Before PostgreSQL 17 a worker cannot connect as a role without LOGIN.
 */
static void
check_owner(Oid owner)
{
	HeapTuple	tuple;
	bool		can_login;

	if (!ES_WORKER_NEEDS_LOGIN)
		return;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(owner));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for role %u", owner);
	can_login = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	if (!can_login)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("role \"%s\" cannot own a projection: it cannot log in",
						GetUserNameFromId(owner, false)),
				 errdetail("The worker connects as the projection's owner."),
				 errhint("ALTER ROLE ... LOGIN, with no password if nobody else shall connect as it.")));
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

static void
check_option(FunctionCallInfo fcinfo, int arg, const char *option, const char *only)
{
	char	   *value = PG_ARGISNULL(arg) ? "" : text_to_cstring(PG_GETARG_TEXT_PP(arg));

	if (strcmp(value, only) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("invalid value for \"%s\": \"%s\"", option, value),
				 errhint("It must be '%s'.", only)));
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
	check_option(fcinfo, ARG_MODE, "mode", "async");
	check_option(fcinfo, ARG_ON_ERROR, "on_error", "stop");
	if (PG_ARGISNULL(ARG_PARTITIONS) || PG_GETARG_INT32(ARG_PARTITIONS) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a projection must have one partition")));
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
	check_owner(GetUserId());
	check_query(text_to_cstring(PG_GETARG_TEXT_PP(ARG_NAME)),
				text_to_cstring(PG_GETARG_TEXT_PP(ARG_QUERY)));
}

/*
 * es_create_projection(name, query, categories, types, mode, partitions,
 *						batch_size, tables, start_after, on_error)
 *
 * Keep read models by running the query, SQL over es_batch, for each batch of
 * events behind start_after that pass the filters, as the calling role and
 * with its present search_path.  batch_size is the number of positions in a
 * batch (NULL: es.batch_size).  Errors: 42710 where it exists, those of the
 * query, 0A000 for utility commands in it, 22023, 22004 and 42622 on bad
 * arguments.  Batches are PgQ's idea; that of SQL over a relation that holds
 * just the new rows is that of transition tables.
 */
Datum
es_create_projection(PG_FUNCTION_ARGS)
{
	static const int args[] = {ARG_NAME, ARG_QUERY, ARG_CATEGORIES, ARG_TYPES,
		ARG_BATCH_SIZE, ARG_TABLES, ARG_START_AFTER};
	Datum		values[9];
	char		nulls[] = "         ";
	EsSpi		spi;

	(void) es_database();
	check_definition(fcinfo);
	es_identity_establish();

	for (int i = 0; i < (int) lengthof(args); i++)
	{
		values[i] = PG_ARGISNULL(args[i]) ? (Datum) 0 : PG_GETARG_DATUM(args[i]);
		if (PG_ARGISNULL(args[i]))
			nulls[i] = 'n';
	}
	values[7] = ObjectIdGetDatum(GetUserId());
	values[8] = CStringGetTextDatum(GetConfigOption("search_path", false, false));

	es_spi_begin(&spi);
	if (es_run(&insert_projection, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("projection \"%s\" already exists",
						TextDatumGetCString(values[0])),
				 errhint("Drop it first with es_drop_projection().")));
	es_spi_end(&spi);
	projections_changed();
	PG_RETURN_VOID();
}

/*
 * Run a statement on a projection, which must exist and be the caller's.
 */
static void
change_projection(FunctionCallInfo fcinfo, EsStatement *statement)
{
	Oid			user = GetUserId();
	Datum		key;
	bool		isnull;
	EsSpi		spi;

	es_check_name("projection name", PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	key = PG_GETARG_DATUM(0);
	es_spi_begin(&spi);
	if (es_run(&owner_of_projection, &key, NULL) == 0)
		es_projection_missing(TextDatumGetCString(key));
	if (!has_privs_of_role(user, DatumGetObjectId(es_spi_value(0, 1, &isnull))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of projection \"%s\"", TextDatumGetCString(key))));
	(void) es_run(statement, &key, NULL);
	es_spi_end(&spi);
	projections_changed();
}

/* es_drop_projection(name): stop and forget it; waits for a batch under way. */
Datum
es_drop_projection(PG_FUNCTION_ARGS)
{
	change_projection(fcinfo, &delete_projection);
	PG_RETURN_VOID();
}

/* es_pause(name): let it rest where it is. */
Datum
es_pause(PG_FUNCTION_ARGS)
{
	change_projection(fcinfo, &pause_projection);
	PG_RETURN_VOID();
}

/* es_resume(name): let it go on, or try again at once where it stopped. */
Datum
es_resume(PG_FUNCTION_ARGS)
{
	change_projection(fcinfo, &resume_projection);
	PG_RETURN_VOID();
}

/*
 * The array in a column, copied into the current context, or NULL.
 */
static ArrayType *
array_column(uint64 row, int column)
{
	bool		isnull;
	Datum		value = es_spi_value(row, column, &isnull);

	return isnull ? NULL : DatumGetArrayTypePCopy(value);
}

static EsProjection *
projection_from_row(uint64 row)
{
	EsProjection *p = palloc0(sizeof(EsProjection));
	bool		isnull;
	Datum		value;

	p->name = pstrdup(es_spi_text(row, 1));
	p->query = pstrdup(es_spi_text(row, 2));
	p->search_path = pstrdup(es_spi_text(row, 3));
	es_filter_from_arrays(&p->filter, array_column(row, 4), array_column(row, 5));
	p->filtered = p->filter.categories || p->filter.types;
	value = es_spi_value(row, 6, &isnull);
	p->batch_size = isnull ? 0 : DatumGetInt32(value);
	p->position = DatumGetInt64(es_spi_value(row, 7, &isnull));
	p->retries = DatumGetInt32(es_spi_value(row, 8, &isnull));
	value = es_spi_value(row, 9, &isnull);
	if (!isnull)
		p->retry_at = es_retry_time(DatumGetTimestampTz(value), p->retries);
	return p;
}

/*
 * The projections of an owner that are not paused, in the current context.
 */
List *
es_projections_of(Oid owner)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *projections = NIL;
	Datum		key = ObjectIdGetDatum(owner);
	EsSpi		spi;
	uint64		n;

	es_spi_begin(&spi);
	n = es_run(&select_projections, &key, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		projections = lappend(projections, projection_from_row(i));
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);
	return projections;
}

/*
 * The roles that own a projection that is not paused, as a list of oids in the
 * current context.
 */
List *
es_projection_owners(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *owners = NIL;
	EsSpi		spi;
	uint64		n;

	es_spi_begin(&spi);
	n = es_run(&select_owners, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		MemoryContext old = MemoryContextSwitchTo(context);

		owners = lappend_oid(owners, DatumGetObjectId(es_spi_value(i, 1, &isnull)));
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);
	return owners;
}
