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

#include "access/htup_details.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "es.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "storage/ipc.h"
#include "store/wakeup.h"
#include "store/watermark.h"
#include "tcop/utility.h"
#include "utils/syscache.h"
#include "worker/database.h"
#include "worker/shell.h"

static ProcessUtility_hook_type previous_hook = NULL;

/*
 * What a command that runs with the database for itself has to undo.
 */
typedef struct Alone
{
	Oid			database;
	bool		wanted;			/* it should have workers again */
} Alone;

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
	const char *template;

	switch (nodeTag(statement))
	{
		case T_DropdbStmt:
			return ((DropdbStmt *) statement)->dbname;
		case T_CreatedbStmt:
			template = string_option(((CreatedbStmt *) statement)->options, "template");
			return template ? template : "template1";
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

static bool
may_create_databases(void)
{
	HeapTuple	tuple;
	bool		may;

	if (superuser())
		return true;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	if (!HeapTupleIsValid(tuple))
		return false;
	may = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
	ReleaseSysCache(tuple);
	return may;
}

/*
 * Whether the current user may have a database for itself: who owns it, and
 * to copy a template everybody who may create databases.
 */
static bool
may_have_alone(Node *statement, Oid database)
{
	HeapTuple	tuple;
	bool		is_template;

	if (es_owns_database(database))
		return true;
	if (!IsA(statement, CreatedbStmt) || !may_create_databases())
		return false;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (!HeapTupleIsValid(tuple))
		return false;
	is_template = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
	ReleaseSysCache(tuple);
	return is_template;
}

/*
 * Let workers into the database again.
 */
static void
allow_workers(int code, Datum arg)
{
	Alone	   *alone = (Alone *) DatumGetPointer(arg);

	if (alone->wanted)
		(void) es_want_database(alone->database, true);
	es_wake_launcher();
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
	Alone		alone = {database, es_want_database(database, false)};

	/* The session may be cancelled or terminated while it waits. */
	PG_ENSURE_ERROR_CLEANUP(allow_workers, PointerGetDatum(&alone));
	{
		/* A worker that is only looking for a log has not asked for one yet. */
		if (es_workers_stop(database))
			alone.wanted = true;
		previous_hook(pstmt, queryString, readOnlyTree, context, params,
					  queryEnv, dest, qc);
	}
	PG_END_ENSURE_ERROR_CLEANUP(allow_workers, PointerGetDatum(&alone));

	if (IsA(pstmt->utilityStmt, DropdbStmt))
		es_forget_database(database);
	else
		allow_workers(0, PointerGetDatum(&alone));
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
	if (OidIsValid(database) && may_have_alone(pstmt->utilityStmt, database))
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
