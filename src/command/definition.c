/*-------------------------------------------------------------------------
 * definition.c
 *	  A cache of the definitions of commands and aggregates in each backend,
 *	  and what both need for the functions that they name.
 *
 * A change of the tables sends a relcache invalidation, and a change of any
 * function one of the function cache.  Both make the definitions stale; a
 * stale one is built anew at its next use and the old one, which a caller up
 * the stack may hold, lives on to the end of the transaction.
 *
 * Definitions are read as the server reads its catalogs, with a snapshot of the
 * instant also where the transaction has an old one: the functions that they
 * name are those of this instant, too.
 *
 * A function gets an FmgrInfo of its own for each command or fold.  A language
 * handler keeps the state of the execution there, SQL's does, so one that an
 * error left in the middle of it must not be used again.
 *
 * The functions are called with the search_path that was in force when they
 * were registered: the caller of es_submit() must not be able to put tables
 * and functions of its own under a rule that was made for it.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "command/definition.h"
#include "es.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "store/append.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

typedef struct Entry
{
	char		name[ES_MAX_NAME + 1];	/* hash key */
	uint64		generation;
	MemoryContext context;
	void	   *definition;
} Entry;

/* Definitions of an older generation are stale; the callbacks count it up. */
static uint64 generation = 1;

static void
forget_relation(Datum arg, Oid relid)
{
	const EsCatalog *catalog = es_catalog_cached();

	if (relid == InvalidOid || catalog == NULL ||
		relid == catalog->command_type || relid == catalog->aggregate ||
		relid == catalog->snapshot)
		generation++;
}

static void
forget_functions(Datum arg, int cacheid, uint32 hashvalue)
{
	generation++;
}

void
es_definitions_init(void)
{
	CacheRegisterRelcacheCallback(forget_relation, (Datum) 0);
	CacheRegisterSyscacheCallback(PROCOID, forget_functions, (Datum) 0);
}

/*
 * Changes whenever a definition, or a function that one names, may have.
 */
uint64
es_definitions_generation(void)
{
	return generation;
}

/*
 * The cache entry of a name: made where there is none, emptied where it is
 * stale.
 */
static Entry *
cache_entry(EsDefinitions *definitions, const char *name)
{
	Entry	   *entry;
	bool		found;

	if (definitions->entries == NULL)
	{
		HASHCTL		ctl = {0};

		ctl.keysize = ES_MAX_NAME + 1;
		ctl.entrysize = sizeof(Entry);
		definitions->entries = hash_create(definitions->kind, 64, &ctl,
										   HASH_ELEM | HASH_STRINGS);
	}
	entry = hash_search(definitions->entries, name, HASH_ENTER, &found);
	if (!found)
		entry->definition = NULL;
	else if (entry->definition && entry->generation != generation)
	{
		MemoryContextSetParent(entry->context, TopTransactionContext);
		entry->definition = NULL;
	}
	return entry;
}

/*
 * The definition of a name, or NULL.  Lives until the end of the transaction
 * at least.
 */
void *
es_definition(EsDefinitions *definitions, const char *name)
{
	Entry	   *entry = cache_entry(definitions, name);
	uint64		seen = generation;
	MemoryContext context;
	MemoryContext old;
	void	   *definition;

	if (entry->definition)
		return entry->definition;

	context = AllocSetContextCreate(CurrentMemoryContext, "es definition",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	definition = definitions->load(name);
	MemoryContextSwitchTo(old);
	if (definition == NULL)
	{
		(void) hash_search(definitions->entries, name, HASH_REMOVE, NULL);
		MemoryContextDelete(context);
		return NULL;
	}
	MemoryContextSetParent(context, TopMemoryContext);
	entry->context = context;
	entry->generation = seen;
	entry->definition = definition;
	return definition;
}

/*
 * The function that a definition names by its text.
 */
Oid
es_function_of(const char *kind, const char *name, const char *signature)
{
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
				 errdetail("%c%s \"%s\" uses it.", pg_toupper(kind[0]), kind + 1, name),
				 errhint("Restore the function, or drop the %s and create it again.", kind)));
	return DatumGetObjectId(oid);
}

/*
 * Refuse what cannot be a category.
 */
void
es_check_category(const text *category)
{
	es_check_name("category", category);
	if (memchr(VARDATA_ANY(category), '-', VARSIZE_ANY_EXHDR(category)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("category \"%s\" must not contain \"-\"",
						text_to_cstring(category)),
				 errdetail("A stream is named category-id; its category ends at the first \"-\"."),
				 errhint("Use \"_\" in its place.")));
}

/*
 * The type of a name in the schema es.
 */
Oid
es_rowtype(const char *name)
{
	return GetSysCacheOid2(TYPENAMENSP, Anum_pg_type_oid, CStringGetDatum(name),
						   ObjectIdGetDatum(get_namespace_oid("es", false)));
}

/*
 * A function must take (jsonb, argument) and return what we want of it, and
 * the caller must be allowed to call it.
 */
void
es_check_function(const char *role, Oid function, Oid argument, Oid rettype,
				  bool set)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc proc;

	if (!HeapTupleIsValid(tuple))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function with OID %u does not exist", function),
				 errdetail("It is %s.", OidIsValid(function) ? "a number that stands for none" : "-, which stands for none"),
				 errhint("Name the function with its argument types, as in 'f(jsonb, es.command)'.")));
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	if (proc->pronargs != 2 || proc->proargtypes.values[0] != JSONBOID ||
		proc->proargtypes.values[1] != argument || proc->prorettype != rettype ||
		proc->proretset != set || proc->prokind != PROKIND_FUNCTION)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_FUNCTION_DEFINITION),
				 errmsg("function %s cannot be used as %s",
						format_procedure(function), role),
				 errdetail("It must take (jsonb, %s) and return %s%s.",
						   format_type_be(argument), set ? "SETOF " : "",
						   format_type_be(rettype)),
				 errhint("Its first argument is the state of the aggregate, the second the %s.",
						 argument == es_rowtype("command") ? "command" : "event")));
	if (!es_may_execute(function))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION, NameStr(proc->proname));
	ReleaseSysCache(tuple);
}

/*
 * The search_path of this session with its schemas by name, as they are found
 * now, and temporary objects last.
 */
char *
es_search_path_to_keep(void)
{
	List	   *schemas = fetch_search_path(false);
	StringInfoData path;
	ListCell   *cell;

	initStringInfo(&path);
	foreach(cell, schemas)
	{
		char	   *name;

		if (isAnyTempNamespace(lfirst_oid(cell)))
			continue;
		name = get_namespace_name(lfirst_oid(cell));
		if (name)
			appendStringInfo(&path, "%s, ", quote_identifier(name));
	}
	appendStringInfoString(&path, "pg_temp");
	list_free(schemas);
	return path.data;
}

/*
 * Set the search_path until es_search_path_leave(), or until an error ends the
 * (sub)transaction.
 */
int
es_search_path_enter(const char *search_path)
{
	int			level = NewGUCNestLevel();

	(void) set_config_option("search_path", search_path,
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	return level;
}

void
es_search_path_leave(int level)
{
	AtEOXact_GUC(true, level);
}
