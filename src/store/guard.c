/*-------------------------------------------------------------------------
 * guard.c
 *	  Keeping the log append-only.
 *
 * Three fences, each for what the others cannot see:
 *
 *		triggers (ENABLE ALWAYS)	INSERT, UPDATE, DELETE, TRUNCATE and COPY,
 *									also by the owner, a superuser and logical
 *									apply; append.c goes past them
 *		the utility hook			ALTER TABLE, RENAME, CREATE RULE and their
 *									kin, which change or shadow what is stored
 *		the object access hook		DROP, by whatever name it comes: TABLE,
 *									SCHEMA, OWNED, EXTENSION, TRIGGER
 *
 * They hold for a log with events in it, until a superuser sets
 * es.allow_destructive.  A superuser who writes the catalogs or the files
 * cannot be stopped by anything that runs in the server.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog.h"
#include "catalog/indexing.h"
#include "catalog/namespace.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "es.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "store/guard.h"
#include "store/identity.h"
#include "tcop/utility.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(es_refuse_change);

static ProcessUtility_hook_type previous_utility = NULL;
static object_access_hook_type previous_access = NULL;

/*
 * Whether a relation is part of the log.
 */
static bool
is_log(Oid relid)
{
	const EsCatalog *catalog = es_catalog_if_exists();

	return catalog != NULL && OidIsValid(relid) &&
		(relid == catalog->event || relid == catalog->tag ||
		 relid == catalog->event_position || relid == catalog->event_key ||
		 relid == catalog->event_stream || relid == catalog->event_category);
}

/*
 * Whether the log holds an event, committed or our own.
 */
static bool
holds_events(void)
{
	Relation	rel = try_relation_open(es_catalog()->event, AccessShareLock);
	TupleTableSlot *slot;
	TableScanDesc scan;
	bool		found;

	if (rel == NULL)
		return false;
	slot = table_slot_create(rel, NULL);
	scan = table_beginscan(rel, SnapshotSelf, 0, NULL);
	found = table_scan_getnextslot(scan, ForwardScanDirection, slot);
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	relation_close(rel, AccessShareLock);
	return found;
}

/*
 * Whether the fences are up.  The extension's own scripts and pg_upgrade pass.
 */
static bool
is_guarded(void)
{
	return !es_allow_destructive && !creating_extension && !IsBinaryUpgrade &&
		holds_events();
}

static void
refuse(const char *command)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s is refused: the log is append-only and holds events", command),
			 errhint("A superuser who must do this can set es.allow_destructive.")));
}

/*
 * Direct writes by SQL.  A database in which the log is in use takes rows from
 * es_append() alone; one in which it never was takes those of a restore.
 */
static bool
may_insert(void)
{
	return !es_identity_is_mine();
}

/*
 * Trigger that refuses direct writes to the log.
 */
Datum
es_refuse_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const char *operation = "TRUNCATE";

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("es.refuse_change() must be called as a trigger")));

	if (TRIGGER_FIRED_BY_INSERT(trigger->tg_event))
		operation = "INSERT";
	else if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		operation = "UPDATE";
	else if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		operation = "DELETE";

	if (!es_allow_destructive &&
		!(TRIGGER_FIRED_BY_INSERT(trigger->tg_event) && may_insert()))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s on \"es.%s\" is refused: the log is append-only",
						operation, RelationGetRelationName(trigger->tg_relation)),
				 TRIGGER_FIRED_BY_INSERT(trigger->tg_event)
				 ? errhint("Append with es_append() or es_submit().  A superuser who must write here can set es.allow_destructive.")
				 : errhint("Append an event that corrects the mistake.  A superuser who must change the log can set es.allow_destructive.")));

	/* NULL from a row trigger would silently skip the row. */
	if (TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event)
							   ? trigger->tg_newtuple : trigger->tg_trigtuple);
	return PointerGetDatum(NULL);
}

/*
 * The relation that a RangeVar names, if it is part of the log.
 */
static bool
names_log(RangeVar *name)
{
	return name != NULL && is_log(RangeVarGetRelid(name, NoLock, true));
}

/*
 * Forms of ALTER TABLE that leave rows, columns and triggers as they are.
 */
static bool
is_harmless(AlterTableType subtype)
{
	switch (subtype)
	{
		case AT_SetStatistics:
		case AT_SetOptions:
		case AT_ResetOptions:
		case AT_SetStorage:
		case AT_SetCompression:
		case AT_ClusterOn:
		case AT_DropCluster:
		case AT_SetTableSpace:
		case AT_SetRelOptions:
		case AT_ResetRelOptions:
		case AT_ReplicaIdentity:
		case AT_EnableRowSecurity:
		case AT_DisableRowSecurity:
		case AT_ForceRowSecurity:
		case AT_NoForceRowSecurity:
		case AT_ChangeOwner:
			return true;
		default:
			return false;
	}
}

/*
 * ALTER TABLE of the log, or of a table that is to have it as parent or part.
 */
static bool
alters_log(AlterTableStmt *statement)
{
	bool		log = names_log(statement->relation);
	ListCell   *cell;

	foreach(cell, statement->cmds)
	{
		AlterTableCmd *cmd = lfirst_node(AlterTableCmd, cell);

		if (log && !is_harmless(cmd->subtype))
			return true;
		if (cmd->subtype == AT_AddInherit && names_log((RangeVar *) cmd->def))
			return true;
		if (cmd->subtype == AT_AttachPartition &&
			names_log(((PartitionCmd *) cmd->def)->name))
			return true;
	}
	return false;
}

static bool
inherits_log(CreateStmt *statement)
{
	ListCell   *cell;

	foreach(cell, statement->inhRelations)
		if (names_log(lfirst_node(RangeVar, cell)))
			return true;
	return false;
}

static bool
renames_log(RenameStmt *statement)
{
	return names_log(statement->relation) ||
		(statement->renameType == OBJECT_SCHEMA &&
		 strcmp(statement->subname, "es") == 0 && es_catalog_if_exists() != NULL);
}

/*
 * DROP of the log by its name.  What comes by another way (DROP OWNED, CASCADE)
 * is left to the object access hook.
 */
static bool
drops_log(DropStmt *statement)
{
	ListCell   *cell;

	foreach(cell, statement->objects)
	{
		Node	   *object = (Node *) lfirst(cell);

		switch (statement->removeType)
		{
			case OBJECT_TABLE:
			case OBJECT_INDEX:
			case OBJECT_SEQUENCE:
				if (names_log(makeRangeVarFromNameList((List *) object)))
					return true;
				break;
			case OBJECT_SCHEMA:
			case OBJECT_EXTENSION:
				if (strcmp(strVal(object), "es") == 0 && es_catalog_if_exists() != NULL)
					return true;
				break;
			default:
				break;
		}
	}
	return false;
}

/*
 * Whether a utility statement changes the log, or puts something before it.
 */
static bool
touches_log(Node *statement)
{
	switch (nodeTag(statement))
	{
		case T_AlterTableStmt:
			return alters_log((AlterTableStmt *) statement);
		case T_DropStmt:
			return drops_log((DropStmt *) statement);
		case T_CreateStmt:
			return inherits_log((CreateStmt *) statement);
		case T_RenameStmt:
			return renames_log((RenameStmt *) statement);
		case T_AlterObjectSchemaStmt:
			return names_log(((AlterObjectSchemaStmt *) statement)->relation);
		case T_AlterSeqStmt:
			return names_log(((AlterSeqStmt *) statement)->sequence);
		case T_RuleStmt:
			return names_log(((RuleStmt *) statement)->relation);
		case T_CreateTrigStmt:
			return names_log(((CreateTrigStmt *) statement)->relation);
		case T_AlterExtensionContentsStmt:
			return strcmp(((AlterExtensionContentsStmt *) statement)->extname, "es") == 0 &&
				es_catalog_if_exists() != NULL;
		default:
			return false;
	}
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString,
				bool readOnlyTree, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *queryEnv,
				DestReceiver *dest, QueryCompletion *qc)
{
	if (touches_log(pstmt->utilityStmt) && is_guarded())
		refuse(CreateCommandName(pstmt->utilityStmt));
	previous_utility(pstmt, queryString, readOnlyTree, context, params,
					 queryEnv, dest, qc);
}

/*
 * The table of a trigger.
 */
static Oid
trigger_table(Oid trigger)
{
	Relation	rel = table_open(TriggerRelationId, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			table = InvalidOid;

	ScanKeyInit(&key, Anum_pg_trigger_oid, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(trigger));
	scan = systable_beginscan(rel, TriggerOidIndexId, true, NULL, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
		table = ((Form_pg_trigger) GETSTRUCT(tuple))->tgrelid;
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return table;
}

/*
 * Something is about to be dropped.
 */
static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId,
			  void *arg)
{
	if (previous_access)
		previous_access(access, classId, objectId, subId, arg);
	if (access != OAT_DROP)
		return;
	if (classId == TriggerRelationId)
		objectId = trigger_table(objectId);
	else if (classId != RelationRelationId)
		return;
	if (is_log(objectId) && is_guarded())
		refuse("DROP");
}

void
es_guard_init(void)
{
	previous_utility = ProcessUtility_hook ? ProcessUtility_hook : standard_ProcessUtility;
	ProcessUtility_hook = process_utility;
	previous_access = object_access_hook;
	object_access_hook = object_access;
}
