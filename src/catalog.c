/*-------------------------------------------------------------------------
 * catalog.c
 *	  Finding the extension's own tables, and running its own SQL on them.
 *
 * The oids are looked up once and kept until one of the relations (or every
 * relation) is invalidated.  Our own SQL runs as the owner of the extension
 * with a search_path that holds nothing but pg_catalog: callers need no right
 * on our tables and cannot put anything of theirs in between.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_extension.h"
#include "commands/extension.h"
#include "es.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

/* Valid between two invalidations; changed by lookup() and forget() alone. */
static EsCatalog cache;
static bool cache_valid = false;

static void
forget(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == cache.event ||
		relid == cache.event_position || relid == cache.command_log ||
		relid == cache.projection || relid == cache.channel ||
		relid == cache.change)
		cache_valid = false;
}

void
es_catalog_init(void)
{
	CacheRegisterRelcacheCallback(forget, (Datum) 0);
}

/*
 * Read the extension's row: its owner, the schema it was created in and the
 * version of its SQL; false where it is not installed.
 */
static bool
read_extension(void)
{
	Relation	rel = table_open(ExtensionRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	bool		found;

	ScanKeyInit(&key, Anum_pg_extension_extname, BTEqualStrategyNumber,
				F_NAMEEQ, CStringGetDatum("es"));
	scan = systable_beginscan(rel, ExtensionNameIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	found = HeapTupleIsValid(tuple);
	if (found)
	{
		bool		isnull;
		Datum		version = heap_getattr(tuple, Anum_pg_extension_extversion,
										   RelationGetDescr(rel), &isnull);

		cache.extension = ((Form_pg_extension) GETSTRUCT(tuple))->oid;
		cache.owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
		cache.schema = ((Form_pg_extension) GETSTRUCT(tuple))->extnamespace;
		text_to_cstring_buffer(DatumGetTextPP(version), cache.version,
							   sizeof(cache.version));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return found;
}

static bool
lookup(void)
{
	Oid			schema = get_namespace_oid("es", true);

	if (!OidIsValid(schema))
		return false;
	if (!read_extension())
		return false;

	cache.event = get_relname_relid("event", schema);
	cache.event_key = get_relname_relid("event_pkey", schema);
	cache.event_stream = get_relname_relid("event_stream_version_key", schema);
	cache.event_category = get_relname_relid("event_category_position_idx", schema);
	cache.event_position = get_relname_relid("event_position", schema);
	cache.tag = get_relname_relid("tag", schema);
	cache.settled = get_relname_relid("settled", schema);
	cache.identity = get_relname_relid("identity", schema);
	cache.command_type = get_relname_relid("command_type", schema);
	cache.command_log = get_relname_relid("command_log", schema);
	cache.command_log_id = get_relname_relid("command_log_pkey", schema);
	cache.aggregate = get_relname_relid("aggregate", schema);
	cache.snapshot = get_relname_relid("snapshot", schema);
	cache.snapshot_key = get_relname_relid("snapshot_pkey", schema);
	cache.tag_key = get_relname_relid("tag_pkey", schema);
	cache.projection = get_relname_relid("projection", schema);
	cache.channel = get_relname_relid("channel", schema);
	cache.change = get_relname_relid("change", schema);
	return OidIsValid(cache.event) && OidIsValid(cache.event_stream) &&
		OidIsValid(cache.event_category) && OidIsValid(cache.event_position);
}

/*
 * The oids of our relations, or NULL where the extension is not installed in
 * this database.  Needs a transaction.
 */
const EsCatalog *
es_catalog_if_exists(void)
{
	if (!cache_valid)
	{
		/* The callback may fire while we look; then the next call looks again. */
		cache_valid = true;
		if (!lookup())
			cache_valid = false;
		else
			return &cache;
		return NULL;
	}
	return &cache;
}

/*
 * The same without a transaction: NULL also where the oids must be looked up.
 */
const EsCatalog *
es_catalog_cached(void)
{
	return cache_valid ? &cache : NULL;
}

/*
 * The same, and nobody drops the extension before the end of the transaction.
 * For who needs several of our tables: DROP EXTENSION locks them in an order of
 * its own, and that could be a deadlock.
 */
const EsCatalog *
es_catalog_locked(void)
{
	const EsCatalog *catalog = es_catalog_if_exists();

	if (catalog == NULL)
		return NULL;
	LockDatabaseObject(ExtensionRelationId, catalog->extension, 0, AccessShareLock);
	/* It may have gone while we waited. */
	return es_catalog_if_exists();
}

/*
 * The same, and an error where there is no extension or its SQL is not that of
 * this library: what the one expects of the other may be different.  That is
 * looked up every time, until it fits.
 */
const EsCatalog *
es_catalog(void)
{
	const EsCatalog *catalog = es_catalog_if_exists();

	if (catalog == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"es\" is not installed in this database"),
				 errhint("Run CREATE EXTENSION es.")));
	if (strcmp(catalog->version, ES_VERSION) != 0)
	{
		cache_valid = false;
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"es\" is at version %s, but the loaded library is of version %s",
						catalog->version, ES_VERSION),
				 errhint("Run ALTER EXTENSION es UPDATE, or install the library of the other version and restart the server.")));
	}
	return catalog;
}

/*
 * Refuse a wish that makes a worker connect as a role, where none can: before
 * PostgreSQL 17 one cannot as a role without LOGIN.
 */
void
es_check_worker_role(Oid role, const char *wish, const char *reason)
{
	HeapTuple	tuple;
	bool		can_login;

	if (!ES_WORKER_NEEDS_LOGIN)
		return;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(role));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for role %u", role);
	can_login = ((Form_pg_authid) GETSTRUCT(tuple))->rolcanlogin;
	ReleaseSysCache(tuple);
	if (!can_login)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("role \"%s\" cannot %s: it cannot log in",
						GetUserNameFromId(role, false), wish),
				 errdetail("%s", reason),
				 errhint("ALTER ROLE ... LOGIN, with no password if nobody else shall connect as it.")));
}

/*
 * Open SPI for our own SQL.  Between this and es_spi_end() nothing that a user
 * wrote may run.  Should the owner of one of our tables have put something
 * there all the same, it can at least not be deferred to the commit, where the
 * scheduler is a superuser.
 */
void
es_spi_begin(EsSpi *spi)
{
	const EsCatalog *catalog = es_catalog();

	GetUserIdAndSecContext(&spi->user, &spi->security);
	spi->guc_level = NewGUCNestLevel();
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	SetUserIdAndSecContext(catalog->owner,
						   spi->security | SECURITY_LOCAL_USERID_CHANGE |
						   SECURITY_RESTRICTED_OPERATION);
	(void) set_config_option("search_path", "pg_catalog, pg_temp",
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
}

void
es_spi_end(EsSpi *spi)
{
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	AtEOXact_GUC(true, spi->guc_level);
	SetUserIdAndSecContext(spi->user, spi->security);
}

/*
 * Plan a statement, if that has not been done yet.  SPI must be connected.
 */
void
es_prepare(EsStatement *statement)
{
	SPIPlanPtr	plan;

	if (statement->plan != NULL)
		return;
	plan = SPI_prepare(statement->sql, statement->nargs, statement->types);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	if (SPI_keepplan(plan) != 0)
		elog(ERROR, "SPI_keepplan failed");
	statement->plan = plan;
}

/*
 * Parameters in the form that SPI_execute_plan_extended() takes.
 */
ParamListInfo
es_params(EsStatement *statement, Datum *values, const char *nulls)
{
	ParamListInfo params = makeParamList(statement->nargs);

	for (int i = 0; i < statement->nargs; i++)
	{
		params->params[i].value = values[i];
		params->params[i].isnull = nulls && nulls[i] == 'n';
		params->params[i].pflags = PARAM_FLAG_CONST;
		params->params[i].ptype = statement->types[i];
	}
	return params;
}

/*
 * Run one of our statements between es_spi_begin() and es_spi_end(), each with
 * a fresh snapshot.  Returns the number of rows; they are in SPI_tuptable.
 */
uint64
es_run(EsStatement *statement, Datum *values, const char *nulls)
{
	int			result;

	es_prepare(statement);
	result = SPI_execute_plan(statement->plan, values, nulls, false, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute_plan failed: %s", SPI_result_code_string(result));
	return SPI_processed;
}

/*
 * The same for one that only reads, with a snapshot taken now also where the
 * transaction has one of its own (REPEATABLE READ and above).
 */
uint64
es_run_latest(EsStatement *statement, Datum *values, const char *nulls)
{
	int			result;

	es_prepare(statement);
	result = SPI_execute_snapshot(statement->plan, values, nulls,
								  GetLatestSnapshot(), InvalidSnapshot,
								  true, false, 0);
	if (result < 0)
		elog(ERROR, "SPI_execute_snapshot failed: %s", SPI_result_code_string(result));
	return SPI_processed;
}

/*
 * Run a statement on one row where it was last: "at" has that as its last
 * parameter, for which "values" has room.  Where it is not there any more, or
 * not known, run "by_key".  Both return the row's ctid first, which is kept.
 *
 * A row that changes all the time leaves a version behind for every change, as
 * long as some old snapshot might see them.  An index leads to all of these,
 * and whoever asks it takes longer every time.
 */
uint64
es_run_at(ItemPointer row, EsStatement *at, EsStatement *by_key, Datum *values)
{
	uint64		n = 0;
	bool		isnull;

	if (ItemPointerIsValid(row))
	{
		values[at->nargs - 1] = PointerGetDatum(row);
		n = es_run(at, values, NULL);
	}
	if (n == 0)
		n = es_run(by_key, values, NULL);
	if (n == 1)
		ItemPointerCopy((ItemPointer) DatumGetPointer(es_spi_value(0, 1, &isnull)), row);
	return n;
}

Datum
es_spi_value(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
						 column, isnull);
}

/* NULL for an SQL NULL. */
char *
es_spi_text(uint64 row, int column)
{
	return SPI_getvalue(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column);
}
