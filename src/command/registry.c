/*-------------------------------------------------------------------------
 * registry.c
 *	  The commands that es_submit() knows: es_create_command() and
 *	  es_drop_command().
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "command/definition.h"
#include "command/registry.h"
#include "es.h"
#include "miscadmin.h"
#include "store/append.h"
#include "store/identity.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/regproc.h"

PG_FUNCTION_INFO_V1(es_create_command);
PG_FUNCTION_INFO_V1(es_drop_command);

/* The arguments of es_create_command(). */
enum
{
	ARG_NAME,
	ARG_CATEGORY,
	ARG_EVENT_TYPE,
	ARG_VALIDATE,
	ARG_DECIDE,
	ARG_CREATES,
	ARG_PAYLOAD_TYPE,
	ARGS
};

static void *load(const char *name);

static EsDefinitions commands = {"es commands", load, NULL};

static EsStatement select_type = ES_SQL(
	"SELECT category, event_type, validate, decide, creates, payload_type, search_path "
	"FROM es.command_type WHERE name = $1",
	1, TEXTOID);
static EsStatement insert_type = ES_SQL(
	"INSERT INTO es.command_type (name, category, event_type, validate, decide, creates, payload_type, "
	"  search_path, owner) "
	"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT DO NOTHING RETURNING name",
	9, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID, REGTYPEOID, TEXTOID, REGROLEOID);
static EsStatement owner_of_type = ES_SQL(
	"SELECT owner FROM es.command_type WHERE name = $1 FOR UPDATE",
	1, TEXTOID);
static EsStatement delete_type = ES_SQL(
	"WITH g AS (DELETE FROM es.command_grant WHERE command = $1) "
	"DELETE FROM es.command_type WHERE name = $1", 1, TEXTOID);

/*
 * A column's text, in the given context; NULL for an SQL NULL.
 */
static char *
text_column(int column, MemoryContext context)
{
	char	   *value = es_spi_text(0, column);

	return value ? MemoryContextStrdup(context, value) : NULL;
}

/*
 * Read a definition into the current memory context, or return NULL.
 */
static void *
load(const char *name)
{
	MemoryContext context = CurrentMemoryContext;
	EsCommandType *type = NULL;
	char	   *validate = NULL;
	char	   *decide = NULL;
	Datum		key = CStringGetTextDatum(name);
	EsSpi		spi;

	es_spi_begin(&spi);
	if (es_run_latest(&select_type, &key, NULL) == 1)
	{
		bool		isnull;
		bool		creates = DatumGetBool(es_spi_value(0, 5, &isnull));
		bool		no_payload_type;
		Oid			payload_type = DatumGetObjectId(es_spi_value(0, 6, &no_payload_type));
		char	   *event_type = es_spi_text(0, 2);
		MemoryContext old = MemoryContextSwitchTo(context);

		type = palloc0(sizeof(EsCommandType));
		type->validate_plan = palloc0(sizeof(EsCallPlan));
		type->name = pstrdup(name);
		type->category = cstring_to_text(es_spi_text(0, 1));
		type->event_type = event_type ? cstring_to_text(event_type) : NULL;
		type->creates = isnull ? ES_MAY_EXIST :
			creates ? ES_MUST_NOT_EXIST : ES_MUST_EXIST;
		if (!no_payload_type)
			type->payload_type = es_payload_type(payload_type);
		validate = text_column(3, context);
		decide = text_column(4, context);
		type->search_path = text_column(7, context);
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);
	if (validate)
		type->validate = es_function_of("command", name, validate);
	if (decide)
		type->decide = es_function_of("command", name, decide);
	if (type)
		es_submitters_load(&type->submitters, name);
	return type;
}

/*
 * The definition of a command; ES003 where there is none.
 */
EsCommandType *
es_command_type(const char *name)
{
	EsCommandType *type = (EsCommandType *) es_definition(&commands, name);

	if (type == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_ES_UNKNOWN_COMMAND),
				 errmsg("command \"%s\" does not exist", name),
				 errdetail("It is not defined in this database."),
				 errhint("See es_commands for what there is, and es_create_command() to define it.")));
	return type;
}

static void
check_payload_type(Oid type)
{
	if (get_typtype(type) != TYPTYPE_COMPOSITE)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("type %s is not a composite type", format_type_be(type)),
				 errdetail("A payload is an object, whose keys are the attributes of its type."),
				 errhint("CREATE TYPE ... AS (...) with an attribute for each key of the payload.")));
	if (!es_may_use_type(type))
		aclcheck_error_type(ACLCHECK_NO_PRIV, type);
}

/*
 * A command becomes one event of a type, or what a decider makes of it.
 */
static void
check_outcome(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(ARG_DECIDE) && PG_ARGISNULL(ARG_EVENT_TYPE))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("command \"%s\" needs an event_type",
						text_to_cstring(PG_GETARG_TEXT_PP(ARG_NAME))),
				 errdetail("Neither event_type nor decide says what it becomes."),
				 errhint("Name the event that the command becomes, for example ORDER_CREATED.")));
	if (!PG_ARGISNULL(ARG_DECIDE) && !PG_ARGISNULL(ARG_EVENT_TYPE))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("command \"%s\" has both an event_type and a decider",
						text_to_cstring(PG_GETARG_TEXT_PP(ARG_NAME))),
				 errdetail("The decider names the types of its events itself."),
				 errhint("Leave one of them out.")));
	if (!PG_ARGISNULL(ARG_EVENT_TYPE))
		es_check_name("event type", PG_GETARG_TEXT_PP(ARG_EVENT_TYPE));
	else
		es_check_function("a decider", PG_GETARG_OID(ARG_DECIDE), es_rowtype("command"),
						  es_rowtype("new_event"), true);
}

/*
 * Everything that is wrong with a definition is said when it is made.
 */
static void
check_definition(FunctionCallInfo fcinfo)
{
	es_check_name("command name",
				  PG_ARGISNULL(ARG_NAME) ? NULL : PG_GETARG_TEXT_PP(ARG_NAME));
	es_check_category(PG_ARGISNULL(ARG_CATEGORY) ? NULL : PG_GETARG_TEXT_PP(ARG_CATEGORY));
	check_outcome(fcinfo);
	if (!PG_ARGISNULL(ARG_VALIDATE))
		es_check_function("a validator", PG_GETARG_OID(ARG_VALIDATE),
						  es_rowtype("command"), VOIDOID, false);
	if (!PG_ARGISNULL(ARG_PAYLOAD_TYPE))
		check_payload_type(PG_GETARG_OID(ARG_PAYLOAD_TYPE));
}

/*
 * es_create_command(name, category, event_type, validate, decide, creates,
 *					 payload_type)
 *
 * Define a command on the aggregates of a category.  Without a decider it
 * becomes one event of event_type with the command's payload, once validate,
 * a function (jsonb, es.command) returning void that raises to reject, and
 * payload_type, a composite type that the payload must populate, let it pass.
 * A decider is a function (jsonb, es.command) returning SETOF es.new_event.
 * Both are called with the present search_path.
 * Errors: 42710 where it exists, 42P13, 42809, 22023 on bad definitions.
 */
Datum
es_create_command(PG_FUNCTION_ARGS)
{
	Datum		values[ARGS + 2];
	char		nulls[] = "         ";
	EsSpi		spi;

	check_definition(fcinfo);
	es_identity_establish();

	for (int i = 0; i < ARGS; i++)
	{
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		if (PG_ARGISNULL(i))
			nulls[i] = 'n';
		else if (i == ARG_VALIDATE || i == ARG_DECIDE)
			values[i] = CStringGetTextDatum(format_procedure_qualified(PG_GETARG_OID(i)));
	}
	values[ARGS] = CStringGetTextDatum(es_search_path_to_keep());
	values[ARGS + 1] = ObjectIdGetDatum(GetUserId());

	es_spi_begin(&spi);
	if (es_run(&insert_type, values, nulls) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("command \"%s\" already exists",
						text_to_cstring(PG_GETARG_TEXT_PP(ARG_NAME))),
				 errdetail("A name stands for one command in a database."),
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
				 errdetail("It is not defined in this database."),
				 errhint("See es_commands for what there is.")));
	if (!has_privs_of_role(user, DatumGetObjectId(es_spi_value(0, 1, &isnull))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of command \"%s\"", TextDatumGetCString(key)),
				 errdetail("Its owner is whoever created it."),
				 errhint("See es_commands for the owner, and SET ROLE to it.")));
	(void) es_run(&delete_type, &key, NULL);
	es_spi_end(&spi);
	CacheInvalidateRelcacheByRelid(es_catalog()->command_type);
	PG_RETURN_VOID();
}
