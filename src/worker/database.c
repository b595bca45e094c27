/*-------------------------------------------------------------------------
 * database.c
 *	  Keeping out of the way of commands on whole databases.
 *
 * DROP DATABASE, ALTER DATABASE RENAME and SET TABLESPACE, and CREATE DATABASE
 * with a template refuse a database that has connections, and our workers
 * would be such.  They are stopped first, and come back if there still is a
 * database to serve.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "es.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "store/wakeup.h"
#include "store/watermark.h"
#include "tcop/utility.h"
#include "worker/database.h"
#include "worker/shell.h"

static ProcessUtility_hook_type previous_hook = NULL;

static const char *
string_option(List *options, const char *name)
{
	ListCell   *cell;

	foreach(cell, options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, name) == 0 && option->arg != NULL)
			return defGetString(option);
	}
	return NULL;
}

/*
 * The name of the database that a command needs for itself, or NULL.
 */
static const char *
database_wanted_alone(Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) statement)->dbname;
		case T_CreatedbStmt:
			return string_option(((CreatedbStmt *) statement)->options, "template");
		case T_RenameStmt:
			return ((RenameStmt *) statement)->renameType == OBJECT_DATABASE
				? ((RenameStmt *) statement)->subname : NULL;
		case T_AlterDatabaseStmt:
			return string_option(((AlterDatabaseStmt *) statement)->options, "tablespace")
				? ((AlterDatabaseStmt *) statement)->dbname : NULL;
		default:
			return NULL;
	}
}

/*
 * Run a command on a database without workers in it.
 */
static void
run_alone(Oid database, PlannedStmt *pstmt, const char *queryString,
		  bool readOnlyTree, ProcessUtilityContext context,
		  ParamListInfo params, QueryEnvironment *queryEnv,
		  DestReceiver *dest, QueryCompletion *qc)
{
	bool		served = es_database_is_served(database);

	es_want_database(database, false);
	es_workers_stop(database);
	PG_TRY();
	{
		previous_hook(pstmt, queryString, readOnlyTree, context, params,
					  queryEnv, dest, qc);
	}
	PG_CATCH();
	{
		es_want_database(database, served);
		es_wake_launcher();
		PG_RE_THROW();
	}
	PG_END_TRY();

	if (IsA(pstmt->utilityStmt, DropdbStmt))
		es_forget_database(database);
	else
		es_want_database(database, served);
	es_wake_launcher();
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString,
				bool readOnlyTree, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *queryEnv,
				DestReceiver *dest, QueryCompletion *qc)
{
	const char *name = database_wanted_alone(pstmt->utilityStmt);
	Oid			database = name ? get_database_oid(name, true) : InvalidOid;

	/* Whoever has no right to it shall not disturb the workers either. */
	if (OidIsValid(database) && es_owns_database(database))
		run_alone(database, pstmt, queryString, readOnlyTree, context, params,
				  queryEnv, dest, qc);
	else
		previous_hook(pstmt, queryString, readOnlyTree, context, params,
					  queryEnv, dest, qc);
}

void
es_database_hook_init(void)
{
	previous_hook = ProcessUtility_hook ? ProcessUtility_hook : standard_ProcessUtility;
	ProcessUtility_hook = process_utility;
}
