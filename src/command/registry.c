/*-------------------------------------------------------------------------
 * registry.c
 *	  The commands that es_submit() knows: es_create_command() and
 *	  es_drop_command(), and a cache of definitions in each backend.
 *
 * A change of es.command_type sends a relcache invalidation, and a change of
 * any function one of the function cache.  Both make the definitions stale; a
 * stale one is built anew at its next use and the old one, which a caller up
 * the stack may hold, lives on to the end of the transaction.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "command/registry.h"
#include "es.h"
#include "miscadmin.h"
#include "store/append.h"
#include "store/identity.h"
#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(es_create_command);
PG_FUNCTION_INFO_V1(es_drop_command);

typedef struct Entry
{
	char		name[ES_MAX_NAME + 1];	/* hash key */
	uint64		generation;
	MemoryContext context;
	EsCommandType *type;
} Entry;

static HTAB *entries = NULL;

/* Definitions of an older generation are stale; the callbacks count it up. */
static uint64 generation = 1;

/* es.command_type as it was when a definition was last loaded. */
static Oid	watched = InvalidOid;

static EsStatement select_type = ES_SQL(
	"SELECT category, event_type, validate, creates, payload_type "
	"FROM es.command_type WHERE name = $1",
	1, TEXTOID);
static EsStatement insert_type = ES_SQL(
	"INSERT INTO es.command_type (name, category, event_type, validate, creates, payload_type, owner) "
	"VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING name",
	7, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID, REGTYPEOID, REGROLEOID);
static EsStatement owner_of_type = ES_SQL(
	"SELECT owner FROM es.command_type WHERE name = $1 FOR UPDATE",
	1, TEXTOID);
static EsStatement delete_type = ES_SQL(
	"DELETE FROM es.command_type WHERE name = $1", 1, TEXTOID);

static void
forget_relation(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == watched)
		generation++;
}

static void
forget_functions(Datum arg, int cacheid, uint32 hashvalue)
{
	generation++;
}

void
es_command_registry_init(void)
{
	CacheRegisterSyscacheCallback(PROCOID, forget_functions, (Datum) 0);
}

/*
 * The row type es.command.
 */
Oid
es_command_rowtype(void)
{
	return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum("command"),
						   ObjectIdGetDatum(get_namespace_oid("es", false)));
}

/*
 * The function that a definition names by its text, ready to be called.
 */
static FmgrInfo *
resolve_function(const char *command, const char *signature)
{
	FmgrInfo   *function = palloc0(sizeof(FmgrInfo));
	LOCAL_FCINFO(call, 1);
	Datum		oid;

	InitFunctionCallInfoData(*call, NULL, 1, InvalidOid, NULL, NULL);
	call->args[0].value = CStringGetTextDatum(signature);
	call->args[0].isnull = false;
	oid = to_regprocedure(call);
	if (call->isnull)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s does not exist", signature),
				 errdetail("Command \"%s\" uses it.", command),
				 errhint("Restore the function, or drop the command and create it again.")));
	fmgr_info_cxt(DatumGetObjectId(oid), function, CurrentMemoryContext);
	return function;
}

/*
 * Read a definition into the current memory context, or return NULL.
 */
static EsCommandType *
load(const char *name)
{
	MemoryContext context = CurrentMemoryContext;
	EsCommandType *type = NULL;
	Datum		key = CStringGetTextDatum(name);
	EsSpi		spi;

	watched = es_catalog()->command_type;
	es_spi_begin(&spi);
	if (es_run(&select_type, &key, NULL) == 1)
	{
		char	   *validate = es_spi_text(0, 3);
		bool		isnull;
		bool		creates = DatumGetBool(es_spi_value(0, 4, &isnull));
		bool		no_payload_type;
		Oid			payload_type = DatumGetObjectId(es_spi_value(0, 5, &no_payload_type));
		MemoryContext old = MemoryContextSwitchTo(context);

		type = palloc0(sizeof(EsCommandType));
		type->name = pstrdup(name);
		type->category = cstring_to_text(es_spi_text(0, 1));
		type->event_type = cstring_to_text(es_spi_text(0, 2));
		type->creates = isnull ? ES_MAY_EXIST :
			creates ? ES_MUST_NOT_EXIST : ES_MUST_EXIST;
		if (!no_payload_type)
			type->payload_type = es_payload_type(payload_type);
		if (validate)
			type->validate = resolve_function(name, validate);
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);
	return type;
}

/*
 * The cache entry of a command: made where there is none, emptied where it is
 * stale.
 */
static Entry *
cache_entry(const char *name)
{
	Entry	   *entry;
	bool		found;

	if (entries == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = ES_MAX_NAME + 1;
		ctl.entrysize = sizeof(Entry);
		entries = hash_create("es commands", 64, &ctl, HASH_ELEM | HASH_STRINGS);
		CacheRegisterRelcacheCallback(forget_relation, (Datum) 0);
	}
	entry = hash_search(entries, name, HASH_ENTER, &found);
	if (!found)
		entry->type = NULL;
	else if (entry->type && entry->generation != generation)
	{
		MemoryContextSetParent(entry->context, TopTransactionContext);
		entry->type = NULL;
	}
	return entry;
}

/*
 * The definition of a command; ES003 where there is none.
 */
EsCommandType *
es_command_type(const char *name)
{
	Entry	   *entry = cache_entry(name);
	uint64		seen = generation;
	MemoryContext context;
	MemoryContext old;
	EsCommandType *type;

	if (entry->type)
		return entry->type;

	context = AllocSetContextCreate(CurrentMemoryContext, "es command",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	type = load(name);
	if (type)
		es_submitters_load(&type->submitters, name);
	MemoryContextSwitchTo(old);
	if (type == NULL)
	{
		(void) hash_search(entries, name, HASH_REMOVE, NULL);
		ereport(ERROR,
				(errcode(ERRCODE_ES_UNKNOWN_COMMAND),
				 errmsg("command \"%s\" does not exist", name),
				 errdetail("It is not defined in this database."),
				 errhint("See es_commands for what there is, and es_create_command() to define it.")));
	}
	MemoryContextSetParent(context, TopMemoryContext);
	entry->context = context;
	entry->generation = seen;
	entry->type = type;
	return type;
}

/*
 * A function given to es_create_command() must take and return what we will
 * call it with, and the caller must be allowed to call it.
 */
static void
check_function(const char *role, Oid function, Oid rettype)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc proc;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", function)));
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->pronargs != 2 || proc->proargtypes.values[0] != JSONBOID ||
		proc->proargtypes.values[1] != es_command_rowtype() ||
		proc->prorettype != rettype || proc->proretset ||
		proc->prokind != PROKIND_FUNCTION)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot be used as %s",
						format_procedure(function), role),
				 errdetail("It must take (jsonb, es.command) and return %s.",
						   format_type_be(rettype)),
				 errhint("Its first argument is the state of the aggregate, the second the command.")));
	if (!es_may_execute(function))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION, NameStr(proc->proname));
	ReleaseSysCache(tuple);
}

static void
check_payload_type(Oid type)
{
	if (get_typtype(type) != TYPTYPE_COMPOSITE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("type %s is not a composite type", format_type_be(type)),
				 errhint("CREATE TYPE ... AS (...) with an attribute for each key of the payload.")));
	if (!es_may_use_type(type))
		aclcheck_error_type(ACLCHECK_NO_PRIV, type);
}

/*
 * Everything that is wrong with a definition is said when it is made.
 */
static void
check_definition(FunctionCallInfo fcinfo)
{
	es_check_name("command name", PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	es_check_name("category", PG_ARGISNULL(1) ? NULL : PG_GETARG_TEXT_PP(1));
	if (memchr(VARDATA_ANY(PG_GETARG_TEXT_PP(1)), '-',
			   VARSIZE_ANY_EXHDR(PG_GETARG_TEXT_PP(1))))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("category \"%s\" must not contain \"-\"",
						text_to_cstring(PG_GETARG_TEXT_PP(1))),
				 errdetail("A stream is named category-id; its category ends at the first \"-\".")));
	if (!PG_ARGISNULL(4))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("deciders are not supported")));
	if (PG_ARGISNULL(2))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("command \"%s\" needs an event_type",
						text_to_cstring(PG_GETARG_TEXT_PP(0))),
				 errhint("Name the event that the command becomes, for example ORDER_CREATED.")));
	es_check_name("event type", PG_GETARG_TEXT_PP(2));
	if (!PG_ARGISNULL(3))
		check_function("a validator", PG_GETARG_OID(3), VOIDOID);
	if (!PG_ARGISNULL(6))
		check_payload_type(PG_GETARG_OID(6));
}

/*
 * es_create_command(name, category, event_type, validate, decide, creates,
 *					 payload_type)
 *
 * Define a command on the aggregates of a category.  Without a decider it
 * becomes one event of event_type with the command's payload, once validate,
 * a function (jsonb, es.command) returning void that raises to reject, and
 * payload_type, a composite type that the payload must populate, let it pass.
 * Errors: 42710 where it exists, 42P13, 42809, 22023 on bad definitions.
 */
Datum
es_create_command(PG_FUNCTION_ARGS)
{
	Datum		values[7];
	char		nulls[] = "       ";
	EsSpi		spi;

	check_definition(fcinfo);
	es_identity_establish();

	for (int i = 0, arg = 0; i < 6; i++, arg++)
	{
		if (arg == 4)
			arg++;				/* decide */
		values[i] = PG_ARGISNULL(arg) ? (Datum) 0 : PG_GETARG_DATUM(arg);
		if (PG_ARGISNULL(arg))
			nulls[i] = 'n';
	}
	if (!PG_ARGISNULL(3))
		values[3] = CStringGetTextDatum(format_procedure_qualified(PG_GETARG_OID(3)));
	values[6] = ObjectIdGetDatum(GetUserId());

	es_spi_begin(&spi);
	if (es_run(&insert_type, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("command \"%s\" already exists",
						text_to_cstring(PG_GETARG_TEXT_PP(0))),
				 errhint("Drop it first with es_drop_command().")));
	es_spi_end(&spi);
	CacheInvalidateRelcacheByRelid(es_catalog()->command_type);
	PG_RETURN_VOID();
}

/*
 * es_drop_command(name): forget a command.  Only its owner may.
 */
Datum
es_drop_command(PG_FUNCTION_ARGS)
{
	Datum		key;
	Oid			user = GetUserId();
	bool		isnull;
	EsSpi		spi;

	es_check_name("command name", PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	key = PG_GETARG_DATUM(0);

	es_spi_begin(&spi);
	if (es_run(&owner_of_type, &key, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_ES_UNKNOWN_COMMAND),
				 errmsg("command \"%s\" does not exist", TextDatumGetCString(key)),
				 errhint("See es_commands for what there is.")));
	if (!has_privs_of_role(user, DatumGetObjectId(es_spi_value(0, 1, &isnull))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of command \"%s\"", TextDatumGetCString(key))));
	(void) es_run(&delete_type, &key, NULL);
	es_spi_end(&spi);
	CacheInvalidateRelcacheByRelid(es_catalog()->command_type);
	PG_RETURN_VOID();
}
