/*-------------------------------------------------------------------------
 * grant.c
 *	  Who may submit which command: es_grant_command() and
 *	  es_revoke_command().
 *
 * The rule: whoever may call es_append() can write any event, so may submit any
 * command too.  Everybody else needs, besides EXECUTE on es_submit(), to own
 * the command or to be a member of a role that was granted it.
 *
 * The roles are loaded with the command's definition and go stale with it.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog.h"
#include "catalog/dependency.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "command/grant.h"
#include "commands/extension.h"
#include "es.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "store/append.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/catcache.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/regproc.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(es_grant_command);
PG_FUNCTION_INFO_V1(es_revoke_command);

static EsStatement select_roles = ES_SQL(
	"SELECT owner::oid FROM es.command_type WHERE name = $1 "
	"UNION ALL SELECT grantee::oid FROM es.command_grant WHERE command = $1",
	1, TEXTOID);
static EsStatement lock_command = ES_SQL(
	"SELECT FROM es.command_type WHERE name = $1 FOR KEY SHARE", 1, TEXTOID);
static EsStatement insert_grant = ES_SQL(
	"INSERT INTO es.command_grant (command, grantee) VALUES ($1, $2) ON CONFLICT DO NOTHING",
	2, TEXTOID, REGROLEOID);
static EsStatement delete_grant = ES_SQL(
	"DELETE FROM es.command_grant WHERE command = $1 AND grantee = $2",
	2, TEXTOID, REGROLEOID);

/*
 * A function of the extension by its name, which only one has: the schema is
 * that in which CREATE EXTENSION put them.
 */
static Oid
own_function(const char *name)
{
	CatCList   *list = SearchSysCacheList1(PROCNAMEARGSNSP, CStringGetDatum(name));
	Oid			extension = get_extension_oid("es", false);
	Oid			function = InvalidOid;

	for (int i = 0; i < list->n_members && !OidIsValid(function); i++)
	{
		Oid			oid = ((Form_pg_proc) GETSTRUCT(&list->members[i]->tuple))->oid;

		if (getExtensionOfObject(ProcedureRelationId, oid) == extension)
			function = oid;
	}
	ReleaseSysCacheList(list);
	if (!OidIsValid(function))
		elog(ERROR, "function %s() is not part of extension \"es\"", name);
	return function;
}

/*
 * Learn who may submit a command, into the current memory context.
 */
void
es_submitters_load(EsSubmitters *submitters, const char *command)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		key = CStringGetTextDatum(command);
	EsSpi		spi;

	submitters->append = own_function("es_append");
	es_spi_begin(&spi);
	submitters->nroles = es_run_latest(&select_roles, &key, NULL);
	submitters->roles = MemoryContextAlloc(context,
										   sizeof(Oid) * Max(submitters->nroles, 1));
	for (int i = 0; i < submitters->nroles; i++)
	{
		bool		isnull;

		submitters->roles[i] = DatumGetObjectId(es_spi_value(i, 1, &isnull));
	}
	es_spi_end(&spi);
}

/*
 * Refuse a command to a caller who may not submit it.
 */
void
es_check_may_submit(const EsSubmitters *submitters, const char *command)
{
	if (es_may_execute(submitters->append))
		return;
	for (int i = 0; i < submitters->nroles; i++)
		if (has_privs_of_role(GetUserId(), submitters->roles[i]))
			return;
	ereport(ERROR,
			(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
			 errmsg("permission denied for command \"%s\"", command),
			 errdetail("It is neither yours nor granted to a role whose rights you have."),
			 errhint("An administrator of the log can allow it with es_grant_command(), or all commands with es_grant(..., 'writer').")));
}

/*
 * The role of an argument, which must be one: regrole knows "-" and numbers.
 */
static Oid
role_argument(FunctionCallInfo fcinfo, int arg)
{
	Oid			role = PG_GETARG_OID(arg);

	if (!SearchSysCacheExists1(AUTHOID, ObjectIdGetDatum(role)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("role with OID %u does not exist", role),
				 errdetail("It is %s.", OidIsValid(role) ? "a number that stands for none" : "-, which stands for none"),
				 errhint("Give the name of a role.")));
	return role;
}

/*
 * Run a change of es.command_grant for a command that must exist.
 */
static void
change_grant(FunctionCallInfo fcinfo, EsStatement *statement)
{
	Datum		values[2];

	values[0] = PG_GETARG_DATUM(1);
	values[1] = ObjectIdGetDatum(role_argument(fcinfo, 0));
	es_check_name("command name", PG_GETARG_TEXT_PP(1));
	if (es_run(&lock_command, values, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_ES_UNKNOWN_COMMAND),
				 errmsg("command \"%s\" does not exist", TextDatumGetCString(values[0])),
				 errdetail("It is not defined in this database."),
				 errhint("See es_commands for what there is.")));
	(void) es_run(statement, values, NULL);
	CacheInvalidateRelcacheByRelid(es_catalog()->command_type);
}

/*
 * es_grant_command(role, command)
 *
 * Let a role, and its members, submit one command.  Errors: ES003 where there
 * is no such command, 42704 where there is no such role.
 */
Datum
es_grant_command(PG_FUNCTION_ARGS)
{
	EsSpi		spi;
	char	   *grant;

	es_spi_begin(&spi);
	change_grant(fcinfo, &insert_grant);
	grant = psprintf("GRANT EXECUTE ON FUNCTION %s TO %s",
					 format_procedure_qualified(own_function("es_submit")),
					 quote_identifier(GetUserNameFromId(PG_GETARG_OID(0), false)));
	if (SPI_execute(grant, false, 0) != SPI_OK_UTILITY)
		elog(ERROR, "SPI_execute failed");
	es_spi_end(&spi);
	PG_RETURN_VOID();
}

/*
 * es_revoke_command(role, command)
 *
 * Take back what es_grant_command() gave.  EXECUTE on es_submit() stays: by
 * itself it lets nobody submit anything.
 */
Datum
es_revoke_command(PG_FUNCTION_ARGS)
{
	EsSpi		spi;

	es_spi_begin(&spi);
	change_grant(fcinfo, &delete_grant);
	es_spi_end(&spi);
	PG_RETURN_VOID();
}
