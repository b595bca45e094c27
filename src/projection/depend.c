/*-------------------------------------------------------------------------
 * depend.c
 *	  Tables that projections declare, guarded against DROP.
 *
 * A projection is no object that pg_depend could point from, so DROP is
 * refused by the object access hook, which sees it by whatever name it comes:
 * TABLE, SCHEMA, OWNED.  There is no CASCADE to a projection: its checkpoint
 * and dead letters are not thrown away in passing.  Once the extension itself
 * is being dropped there is nothing to guard.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/relation.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "projection/depend.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* The columns of es.projection that matter here. */
#define COLUMN_NAME		1
#define COLUMN_TABLES	9

static object_access_hook_type previous_access = NULL;

static bool
contains(Datum array, Oid relid)
{
	ArrayType  *tables = DatumGetArrayTypeP(array);
	int			n = ArrayGetNItems(ARR_NDIM(tables), ARR_DIMS(tables));

	for (int i = 0; i < n; i++)
		if (((Oid *) ARR_DATA_PTR(tables))[i] == relid)
			return true;
	return false;
}

/*
 * The projection that declares a table, or NULL.
 */
static char *
projection_declaring(Oid relid)
{
	const EsCatalog *catalog = es_catalog_if_exists();
	Relation	rel = catalog ? try_relation_open(catalog->projection, AccessShareLock) : NULL;
	TupleTableSlot *slot;
	TableScanDesc scan;
	char	   *name = NULL;

	if (rel == NULL)
		return NULL;
	slot = table_slot_create(rel, NULL);
	scan = table_beginscan(rel, SnapshotSelf, 0, NULL);
	while (name == NULL && table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		Datum		tables = slot_getattr(slot, COLUMN_TABLES, &isnull);

		if (!isnull && contains(tables, relid))
			name = TextDatumGetCString(slot_getattr(slot, COLUMN_NAME, &isnull));
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	relation_close(rel, AccessShareLock);
	return name;
}

static void
object_access(ObjectAccessType access, Oid classId, Oid objectId, int subId,
			  void *arg)
{
	char	   *name;

	if (previous_access)
		previous_access(access, classId, objectId, subId, arg);
	if (access != OAT_DROP || classId != RelationRelationId || subId != 0 ||
		(get_rel_relkind(objectId) != RELKIND_RELATION &&
		 get_rel_relkind(objectId) != RELKIND_PARTITIONED_TABLE) ||
		get_rel_persistence(objectId) == RELPERSISTENCE_TEMP)
		return;
	name = projection_declaring(objectId);
	if (name != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST),
				 errmsg("cannot drop table \"%s\" because projection \"%s\" keeps it",
						get_rel_name(objectId), name),
				 errhint("Drop the projection first, with es_drop_projection().")));
}

void
es_depend_init(void)
{
	previous_access = object_access_hook;
	object_access_hook = object_access;
}
