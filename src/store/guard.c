/*-------------------------------------------------------------------------
 * guard.c
 *	  Keeping the log append-only.
 *
 * Three fences, each for what the others cannot see:
 *
 *		triggers				INSERT, UPDATE, DELETE, TRUNCATE, MERGE and COPY,
 *								by the owner, a superuser and logical apply too,
 *								whatever session_replication_role is; append.c
 *								goes past them
 *		the utility hook		ALTER TABLE, RENAME, INHERIT and their kin, and
 *								DROP by name, before anything is locked
 *		the object access hook	triggers and rules that come to be or change, by
 *								whatever statement, and every DROP: of SCHEMA,
 *								OWNED, EXTENSION, CASCADE
 *
 * They stand from CREATE EXTENSION on: a trigger that is disabled while the log
 * is empty would be missed when it is not.  Only DROP is free as long as there
 * is no event.  A superuser takes them down with es.allow_destructive; one who
 * writes the catalogs or the files cannot be stopped by anything that runs in
 * the server.
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
#include "catalog/pg_proc.h"
#include "catalog/pg_rewrite.h"
#include "catalog/pg_trigger.h"
#include "commands/extension.h"
#include "commands/trigger.h"
#include "es.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "nodes/parsenodes.h"
#include "store/guard.h"
#include "store/hint.h"
#include "store/identity.h"
#include "store/watermark.h"
#include "tcop/utility.h"
#include "utils/fmgroids.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(es_refuse_change);

static ProcessUtility_hook_type previous_utility = NULL;
static object_access_hook_type previous_access = NULL;

/*
 * Whether a relation is part of the log.  es.identity is: without its row the
 * log would take rows as a restore brings them.
 */
static bool
is_log(Oid relid)
{
	const EsCatalog *catalog = es_catalog_if_exists();

	return catalog != NULL && OidIsValid(relid) &&
		(relid == catalog->event || relid == catalog->tag ||
		 relid == catalog->identity || relid == catalog->event_position ||
		 relid == catalog->event_key || relid == catalog->event_stream ||
		 relid == catalog->event_category);
}

/*
 * Whether a relation is a table of the extension.  What the extension does
 * with these it does as their owner or as a superuser, so nobody else's trigger
 * or rule may stand there.
 */
static bool
is_ours(Oid relid)
{
	return es_catalog_if_exists() != NULL && OidIsValid(relid) &&
		get_rel_namespace(relid) == get_namespace_oid("es", true);
}

/*
 * Whether the log holds an event, committed or our own.
 */
static bool
holds_events(void)
{
	const EsCatalog *catalog = es_catalog_if_exists();
	Relation	rel = catalog ? try_relation_open(catalog->event, AccessShareLock) : NULL;
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
 * Whether the fences stand.  The extension's own scripts pass, but not those
 * of other extensions, and so does pg_upgrade.
 */
static bool
is_guarded(void)
{
	if (es_allow_destructive || IsBinaryUpgrade)
		return false;
	return !creating_extension ||
		CurrentExtensionObject != get_extension_oid("es", true);
}

static void
refuse(const char *command)
{
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s is refused: the log is append-only", command),
			 errhint("A superuser who must do this can set es.allow_destructive.")));
}

/*
 * Whether direct writes may insert.  A database in which the log is in use
 * takes rows from es_append() alone; one in which it never was takes those of a
 * restore or of a publisher.  Asked for every row of the latter, so the answer
 * is kept for the transaction.
 */
static bool
may_insert(void)
{
	static LocalTransactionId asked_in = InvalidLocalTransactionId;
	static bool answer;

	if (asked_in != ES_MY_LXID)
	{
		answer = !es_identity_is_mine();
		asked_in = ES_MY_LXID;
	}
	return answer;
}

/*
 * What a trigger returns to let the operation go on: NULL from a row trigger
 * would silently skip the row.
 */
static Datum
go_on(TriggerData *trigger)
{
	if (!TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		return PointerGetDatum(NULL);
	return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event)
						   ? trigger->tg_newtuple : trigger->tg_trigtuple);
}

/*
 * Trigger that refuses direct writes to the log.
 */
Datum
es_refuse_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	bool		inserts;
	const char *operation;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("es.refuse_change() must be called as a trigger")));

	inserts = TRIGGER_FIRED_BY_INSERT(trigger->tg_event);
	if (es_allow_destructive || (inserts && may_insert()))
	{
		/* The rows of a statement are as void as it is. */
		es_hints_forget(!TRIGGER_FIRED_FOR_ROW(trigger->tg_event));
		return go_on(trigger);
	}

	operation = inserts ? "INSERT" :
		TRIGGER_FIRED_BY_UPDATE(trigger->tg_event) ? "UPDATE" :
		TRIGGER_FIRED_BY_DELETE(trigger->tg_event) ? "DELETE" : "TRUNCATE";
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("%s on \"es.%s\" is refused: the log is append-only",
					operation, RelationGetRelationName(trigger->tg_relation)),
			 inserts
			 ? errhint("Append with es_append() or es_submit().  A superuser who must write here can set es.allow_destructive.")
			 : errhint("Append an event that corrects the mistake.  A superuser who must change the log can set es.allow_destructive.")));
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

/*
 * The rows of a child table would be read as events.
 */
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
 * A trigger goes by the name of its table and its own.
 */
static bool
names_trigger_of_log(List *name)
{
	return names_log(makeRangeVarFromNameList(list_truncate(list_copy(name),
															list_length(name) - 1)));
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
 * DROP of a trigger of the log, which leaves the table: not even an empty one
 * may lose it.
 */
static bool
drops_trigger(DropStmt *statement)
{
	ListCell   *cell;

	if (statement->removeType != OBJECT_TRIGGER)
		return false;
	foreach(cell, statement->objects)
		if (names_trigger_of_log(lfirst_node(List, cell)))
			return true;
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
			return drops_trigger((DropStmt *) statement) ||
				(drops_log((DropStmt *) statement) && holds_events());
		case T_CreateStmt:
			return inherits_log((CreateStmt *) statement);
		case T_RenameStmt:
			return renames_log((RenameStmt *) statement);
		case T_AlterObjectSchemaStmt:
			return names_log(((AlterObjectSchemaStmt *) statement)->relation);
		case T_AlterObjectDependsStmt:
			return names_log(((AlterObjectDependsStmt *) statement)->relation);
		case T_AlterSeqStmt:
			return names_log(((AlterSeqStmt *) statement)->sequence);
		case T_AlterExtensionContentsStmt:
			return strcmp(((AlterExtensionContentsStmt *) statement)->extname, "es") == 0 &&
				es_catalog_if_exists() != NULL;
		default:
			return false;
	}
}

static bool
updates_extension(Node *statement)
{
	return IsA(statement, AlterExtensionStmt) &&
		strcmp(((AlterExtensionStmt *) statement)->extname, "es") == 0;
}

/*
 * The extension's version has changed, which no table tells those who keep it.
 */
static void
forget_version(void)
{
	const EsCatalog *catalog = es_catalog_if_exists();

	if (catalog != NULL)
		CacheInvalidateRelcacheByRelid(catalog->event);
}

static void
process_utility(PlannedStmt *pstmt, const char *queryString,
				bool readOnlyTree, ProcessUtilityContext context,
				ParamListInfo params, QueryEnvironment *queryEnv,
				DestReceiver *dest, QueryCompletion *qc)
{
	/* The statement may be gone after it has run. */
	bool		updates = updates_extension(pstmt->utilityStmt);

	if (touches_log(pstmt->utilityStmt) && is_guarded())
		refuse(CreateCommandName(pstmt->utilityStmt));
	previous_utility(pstmt, queryString, readOnlyTree, context, params,
					 queryEnv, dest, qc);
	if (updates)
		forget_version();
}

/*
 * Read an oid from the row of a catalog that may be of this very command.
 */
static Oid
catalog_oid(Oid catalog, Oid index, AttrNumber key_column, Oid object,
			AttrNumber column)
{
	Relation	rel = table_open(catalog, AccessShareLock);
	ScanKeyData key;
	SysScanDesc scan;
	HeapTuple	tuple;
	Oid			result = InvalidOid;

	ScanKeyInit(&key, key_column, BTEqualStrategyNumber, F_OIDEQ,
				ObjectIdGetDatum(object));
	scan = systable_beginscan(rel, index, true, SnapshotSelf, 1, &key);
	tuple = systable_getnext(scan);
	if (HeapTupleIsValid(tuple))
	{
		bool		isnull;

		result = DatumGetObjectId(heap_getattr(tuple, column,
											   RelationGetDescr(rel), &isnull));
	}
	systable_endscan(scan);
	table_close(rel, AccessShareLock);
	return result;
}

/*
 * The table of a trigger or rule; the object itself if it is a relation.
 */
static Oid
relation_of(Oid classId, Oid objectId)
{
	switch (classId)
	{
		case RelationRelationId:
			return objectId;
		case TriggerRelationId:
			return catalog_oid(classId, TriggerOidIndexId, Anum_pg_trigger_oid,
							   objectId, Anum_pg_trigger_tgrelid);
		case RewriteRelationId:
			return catalog_oid(classId, RewriteOidIndexId, Anum_pg_rewrite_oid,
							   objectId, Anum_pg_rewrite_ev_class);
		default:
			return InvalidOid;
	}
}

/*
 * Whether a function is the triggers' own.  Its owner could replace it by one
 * that refuses nothing.
 */
static bool
is_trigger_function(Oid function)
{
	char	   *name = get_func_name(function);

	return name != NULL && strcmp(name, "refuse_change") == 0 &&
		get_func_namespace(function) == get_namespace_oid("es", true);
}

/*
 * A trigger, rule or function has been made or replaced.  Foreign keys bring
 * triggers of the server's own, which change nothing.
 */
static void
check_created(Oid classId, Oid objectId, const ObjectAccessPostCreate *arg)
{
	if (classId == ProcedureRelationId)
	{
		if (is_trigger_function(objectId) && is_guarded())
			refuse("CREATE FUNCTION");
	}
	else if (classId == TriggerRelationId || classId == RewriteRelationId)
	{
		if (!(arg && arg->is_internal) &&
			is_ours(relation_of(classId, objectId)) && is_guarded())
			refuse(classId == TriggerRelationId ? "CREATE TRIGGER" : "CREATE RULE");
	}
}

/*
 * A trigger or rule was enabled, disabled or renamed.
 */
static void
check_altered(Oid classId, Oid objectId)
{
	if ((classId == TriggerRelationId || classId == RewriteRelationId) &&
		is_log(relation_of(classId, objectId)) && is_guarded())
		refuse(classId == TriggerRelationId ? "ALTER TRIGGER" : "ALTER RULE");
}

/*
 * Something is about to be dropped.  All that goes with it is locked, so
 * nobody can be in the middle of an append.  Workers of a log that goes have to
 * look for it.
 */
static void
check_dropped(Oid classId, Oid objectId)
{
	if ((classId != RelationRelationId && classId != TriggerRelationId) ||
		!is_log(relation_of(classId, objectId)))
		return;
	if (is_guarded() && holds_events())
		refuse("DROP");
	if (classId == RelationRelationId)
		es_wake_at_drop();
}

static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId,
			  void *arg)
{
	if (previous_access)
		previous_access(access, classId, objectId, subId, arg);
	switch (access)
	{
		case OAT_POST_CREATE:
			check_created(classId, objectId, (ObjectAccessPostCreate *) arg);
			break;
		case OAT_POST_ALTER:
			check_altered(classId, objectId);
			break;
		case OAT_DROP:
			check_dropped(classId, objectId);
			break;
		default:
			break;
	}
}

void
es_guard_init(void)
{
	previous_utility = ProcessUtility_hook ? ProcessUtility_hook : standard_ProcessUtility;
	ProcessUtility_hook = process_utility;
	previous_access = object_access_hook;
	object_access_hook = object_access;
}
