/*-------------------------------------------------------------------------
 * aggregate.c
 *	  Defining aggregates: es_create_aggregate(), es_drop_aggregate(), and
 *	  dropping their snapshots.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "command/aggregate.h"
#include "command/definition.h"
#include "commands/trigger.h"
#include "common/hashfn.h"
#include "es.h"
#include "miscadmin.h"
#include "store/append.h"
#include "store/identity.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(es_create_aggregate);
PG_FUNCTION_INFO_V1(es_drop_aggregate);
PG_FUNCTION_INFO_V1(es_drop_snapshots);
PG_FUNCTION_INFO_V1(es_forget_snapshots);

static void *load(const char *category);

static EsDefinitions aggregates = {"es aggregates", load, NULL};

static EsStatement select_aggregate = ES_SQL(
	"SELECT evolve, initial_state, snapshot_every, search_path "
	"FROM es.aggregate WHERE category = $1",
	1, TEXTOID);
static EsStatement insert_aggregate = ES_SQL(
	"INSERT INTO es.aggregate (category, evolve, initial_state, snapshot_every, search_path, owner) "
	"VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
	6, TEXTOID, TEXTOID, JSONBOID, INT4OID, TEXTOID, REGROLEOID);
static EsStatement owner_of_aggregate = ES_SQL(
	"SELECT owner FROM es.aggregate WHERE category = $1 FOR UPDATE",
	1, TEXTOID);
static EsStatement delete_aggregate = ES_SQL(
	"DELETE FROM es.aggregate WHERE category = $1", 1, TEXTOID);

/* The streams of a category are it and all that begin with it and a "-". */
static EsStatement delete_snapshots = ES_SQL(
	"DELETE FROM es.snapshot WHERE stream = $1 OR "
	"(stream >= $1 || '-' AND stream < $1 || '.')", 1, TEXTOID);
static EsStatement delete_all_snapshots = ES_SQL(
	"DELETE FROM es.snapshot", 0, InvalidOid);

static uint64
hash_attribute(Oid function, HeapTuple tuple, int attribute, uint64 seed)
{
	bool		isnull;
	Datum		value = SysCacheGetAttr(PROCOID, tuple, attribute, &isnull);
	char	   *string;

	if (isnull)
		return hash_bytes_extended((const unsigned char *) "", 0, seed + 1);
	if (attribute == Anum_pg_proc_proconfig)
	{
		string = OidOutputFunctionCall(F_ARRAY_OUT, value);
		return hash_bytes_extended((unsigned char *) string, strlen(string), seed);
	}
	string = TextDatumGetCString(value);
	return hash_bytes_extended((unsigned char *) string, strlen(string), seed);
}

/*
 * What tells one evolve function and initial state from another: snapshots
 * made with another one are not looked at.
 */
static int64
identity_of(Oid function, Jsonb *initial_state)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	uint64		hash;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	hash = hash_combine64(function, ((Form_pg_proc) GETSTRUCT(tuple))->prolang);
	hash = hash_attribute(function, tuple, Anum_pg_proc_prosrc, hash);
	hash = hash_attribute(function, tuple, Anum_pg_proc_probin, hash);
	hash = hash_attribute(function, tuple, Anum_pg_proc_prosqlbody, hash);
	hash = hash_attribute(function, tuple, Anum_pg_proc_proconfig, hash);
	ReleaseSysCache(tuple);
	return (int64) hash_bytes_extended((unsigned char *) VARDATA_ANY(initial_state),
									   VARSIZE_ANY_EXHDR(initial_state), hash);
}

/*
 * Read a definition into the current memory context, or return NULL.
 */
static void *
load(const char *category)
{
	MemoryContext context = CurrentMemoryContext;
	EsAggregate *aggregate = NULL;
	char	   *evolve = NULL;
	Datum		key = CStringGetTextDatum(category);
	EsSpi		spi;

	es_spi_begin(&spi);
	if (es_run_latest(&select_aggregate, &key, NULL) == 1)
	{
		bool		isnull;
		MemoryContext old = MemoryContextSwitchTo(context);

		aggregate = palloc0(sizeof(EsAggregate));
		aggregate->evolve_plan = palloc0(sizeof(EsCallPlan));
		aggregate->category = pstrdup(category);
		evolve = pstrdup(es_spi_text(0, 1));
		aggregate->initial_state = DatumGetJsonbPCopy(es_spi_value(0, 2, &isnull));
		aggregate->snapshot_every = DatumGetInt32(es_spi_value(0, 3, &isnull));
		aggregate->search_path = pstrdup(es_spi_text(0, 4));
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);
	if (aggregate)
	{
		aggregate->evolve = es_function_of("aggregate", category, evolve);
		aggregate->identity = identity_of(aggregate->evolve,
										  aggregate->initial_state);
	}
	return aggregate;
}

/*
 * The aggregate of a category, or NULL where none is defined.
 */
EsAggregate *
es_aggregate_of(const text *category)
{
	char		name[ES_MAX_NAME + 1];

	text_to_cstring_buffer(category, name, sizeof(name));
	return (EsAggregate *) es_definition(&aggregates, name);
}

static void
check_definition(FunctionCallInfo fcinfo)
{
	es_check_category(PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	if (PG_ARGISNULL(1))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the evolve function of an aggregate must not be null"),
				 errdetail("It is NULL."),
				 errhint("Give a function (state jsonb, event es.event) RETURNS jsonb.")));
	es_check_function("an evolve function", PG_GETARG_OID(1), es_rowtype("event"),
					  JSONBOID, false);
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the initial state of an aggregate must not be null"),
				 errdetail("It is NULL."),
				 errhint("Leave it out, or give '{}'.")));
	if (PG_ARGISNULL(3) || PG_GETARG_INT32(3) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("snapshot_every must be a number of events"),
				 PG_ARGISNULL(3) ? errdetail("It is NULL.")
				 : errdetail("It is %d.", PG_GETARG_INT32(3)),
				 errhint("Give 0 for no snapshots.")));
}

/*
 * es_create_aggregate(category, evolve, initial_state, snapshot_every)
 *
 * Say how the events of each stream of a category become its state: beginning
 * with initial_state, evolve(state jsonb, event es.event) returns the next
 * one.  It must depend on nothing but its arguments.  A snapshot of the state
 * is kept every snapshot_every events (0: never).  Errors: 42710 where the
 * category has one, 42P13, 22004, 22023 on bad definitions.  The shape is that
 * of the decider pattern: (state, event) -> state.
 */
Datum
es_create_aggregate(PG_FUNCTION_ARGS)
{
	Datum		values[6];
	EsSpi		spi;

	check_definition(fcinfo);
	es_identity_establish();

	values[0] = PG_GETARG_DATUM(0);
	values[1] = CStringGetTextDatum(format_procedure_qualified(PG_GETARG_OID(1)));
	values[2] = PG_GETARG_DATUM(2);
	values[3] = PG_GETARG_DATUM(3);
	values[4] = CStringGetTextDatum(es_search_path_to_keep());
	values[5] = ObjectIdGetDatum(GetUserId());
	es_spi_begin(&spi);
	if (es_run(&insert_aggregate, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("category \"%s\" already has an aggregate",
						TextDatumGetCString(values[0])),
				 errdetail("The states of its streams can be only one thing."),
				 errhint("Replace its evolve function with CREATE OR REPLACE FUNCTION, or drop it first with es_drop_aggregate().")));
	es_spi_end(&spi);
	CacheInvalidateRelcacheByRelid(es_catalog()->aggregate);
	PG_RETURN_VOID();
}

/*
 * An aggregate must exist and be the user's.  SPI is connected.
 */
static void
check_owner(Datum category, Oid user)
{
	bool		isnull;

	if (es_run(&owner_of_aggregate, &category, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("category \"%s\" has no aggregate", TextDatumGetCString(category)),
				 errdetail("None is defined in this database."),
				 errhint("See es_aggregates for what there is.")));
	if (!has_privs_of_role(user, DatumGetObjectId(es_spi_value(0, 1, &isnull))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of aggregate \"%s\"", TextDatumGetCString(category)),
				 errdetail("Its owner is whoever created it."),
				 errhint("See es_aggregates for the owner, and SET ROLE to it.")));
}

/*
 * es_drop_aggregate(category): forget it and its snapshots.
 */
Datum
es_drop_aggregate(PG_FUNCTION_ARGS)
{
	Oid			user = GetUserId();
	Datum		key;
	EsSpi		spi;

	es_check_category(PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	key = PG_GETARG_DATUM(0);
	es_spi_begin(&spi);
	check_owner(key, user);
	(void) es_run(&delete_aggregate, &key, NULL);
	(void) es_run(&delete_snapshots, &key, NULL);
	es_spi_end(&spi);
	CacheInvalidateRelcacheByRelid(es_catalog()->aggregate);
	PG_RETURN_VOID();
}

/*
 * es_drop_snapshots(category): drop the snapshots of an aggregate.  Nothing is
 * lost; they come again as commands are submitted.  Returns their number.
 */
Datum
es_drop_snapshots(PG_FUNCTION_ARGS)
{
	Oid			user = GetUserId();
	Datum		key;
	uint64		n;
	EsSpi		spi;

	es_check_category(PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	key = PG_GETARG_DATUM(0);
	es_spi_begin(&spi);
	check_owner(key, user);
	n = es_run(&delete_snapshots, &key, NULL);
	es_spi_end(&spi);
	CacheInvalidateRelcacheByRelid(es_catalog()->snapshot);
	PG_RETURN_INT64((int64) n);
}

/*
 * Trigger on es.event: the log itself was changed by a superuser, so that what
 * was folded from it, here and in the caches of all sessions, may be wrong.
 */
Datum
es_forget_snapshots(PG_FUNCTION_ARGS)
{
	EsSpi		spi;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("es.forget_snapshots() must be called as a trigger")));
	es_spi_begin(&spi);
	(void) es_run(&delete_all_snapshots, NULL, NULL);
	es_spi_end(&spi);
	CacheInvalidateRelcacheByRelid(es_catalog()->snapshot);
	return PointerGetDatum(NULL);
}
