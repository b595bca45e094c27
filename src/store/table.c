/*-------------------------------------------------------------------------
 * table.c
 *	  Reading and writing our own tables past SPI and the executor.
 *
 * An append is a heap insert and a few index inserts.  Planning, executor
 * start-up and permission checks cost more than these, so we call the access
 * methods themselves.  What describes the indexes is built once and kept until
 * the table is invalidated; indexes that an administrator adds, those on
 * expressions and partial ones too, are kept like ours.
 *
 * Constraints and triggers for INSERT are not looked at: our tables need none.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "es.h"
#include "executor/executor.h"
#include "storage/bufmgr.h"
#include "store/table.h"
#include "utils/inval.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* The tables used so far; grows in build(), never shrinks. */
static EsTable *tables = NULL;

static void
forget(Datum arg, Oid relid)
{
	for (EsTable *t = tables; t != NULL; t = t->next)
		if (relid == InvalidOid || relid == t->relid)
			t->valid = false;
}

/*
 * We write rows by the columns that our script gave the table, so a table that
 * somebody altered is left alone.  Columns that were added and dropped again
 * do no harm: es_slot_for_writing() leaves them NULL.
 */
static void
check_columns(const EsTable *table, Relation rel)
{
	TupleDesc	desc = RelationGetDescr(rel);
	bool		same = desc->natts >= table->ncolumns;

	for (int i = 0; same && i < desc->natts; i++)
		same = i < table->ncolumns
			? TupleDescAttr(desc, i)->atttypid == table->types[i]
			: TupleDescAttr(desc, i)->attisdropped;
	if (!same)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("table \"es.%s\" is not as the extension made it",
						RelationGetRelationName(rel)),
				 errdetail("Columns were added, dropped or changed."),
				 errhint("Undo that, and keep what you want to add in a table of your own.")));
}

/*
 * Learn the indexes of a table.  The new description replaces the old one only
 * when it is complete, so an error on the way costs nothing.
 */
static void
build(EsTable *table, Relation rel)
{
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext, "es table",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);
	List	   *oids = RelationGetIndexList(rel);
	int			n = 0;
	Oid		   *indexes = palloc(sizeof(Oid) * Max(list_length(oids), 1));
	IndexInfo **infos = palloc(sizeof(IndexInfo *) * Max(list_length(oids), 1));
	ListCell   *cell;

	check_columns(table, rel);
	foreach(cell, oids)
	{
		Relation	index = index_open(lfirst_oid(cell), RowExclusiveLock);

		if (index->rd_index->indisready)
		{
			indexes[n] = lfirst_oid(cell);
			infos[n++] = BuildIndexInfo(index);
		}
		index_close(index, NoLock);
	}
	MemoryContextSwitchTo(old);

	if (table->context == NULL)
	{
		if (tables == NULL)
			CacheRegisterRelcacheCallback(forget, (Datum) 0);
		table->next = tables;
		tables = table;
	}
	else
		MemoryContextDelete(table->context);
	MemoryContextSetParent(context, TopMemoryContext);
	table->context = context;
	table->nindexes = n;
	table->indexes = indexes;
	table->infos = infos;
	table->relid = RelationGetRelid(rel);
	table->valid = true;
}

/*
 * Open a table and its indexes for writing.  The locks stay until the end of
 * the transaction.
 *
 * The descriptions of the indexes are copied for each use, because the access
 * methods of some (GIN, GiST, BRIN) hang there what they want to keep for the
 * length of a statement, with pointers into the open index.
 */
void
es_writer_open(EsWriter *writer, EsTable *table, Oid relid)
{
	writer->rel = table_open(relid, RowExclusiveLock);
	if (!table->valid || table->relid != relid)
		build(table, writer->rel);
	writer->ncolumns = table->ncolumns;
	writer->nindexes = table->nindexes;
	writer->infos = palloc(sizeof(IndexInfo) * Max(table->nindexes, 1));
	writer->indexes = palloc(sizeof(Relation) * Max(table->nindexes, 1));
	for (int i = 0; i < writer->nindexes; i++)
	{
		writer->indexes[i] = index_open(table->indexes[i], RowExclusiveLock);
		writer->infos[i] = *table->infos[i];
		writer->infos[i].ii_Context = CurrentMemoryContext;
	}
}

void
es_writer_close(EsWriter *writer)
{
	for (int i = 0; i < writer->nindexes; i++)
	{
		es_index_insert_cleanup(writer->indexes[i], &writer->infos[i]);
		index_close(writer->indexes[i], NoLock);
	}
	table_close(writer->rel, NoLock);
	pfree(writer->indexes);
	pfree(writer->infos);
}

/*
 * Enter rows into an index on expressions or a partial one, which needs an
 * executor state to evaluate them in.
 */
static void
insert_computed_entries(EsWriter *writer, int index,
						TupleTableSlot **slots, int nslots)
{
	IndexInfo  *info = &writer->infos[index];
	EState	   *estate = CreateExecutorState();
	ExprContext *context = GetPerTupleExprContext(estate);
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	info->ii_PredicateState = info->ii_Predicate == NIL
		? NULL : ExecPrepareQual(info->ii_Predicate, estate);
	for (int i = 0; i < nslots; i++)
	{
		context->ecxt_scantuple = slots[i];
		if (info->ii_PredicateState == NULL ||
			ExecQual(info->ii_PredicateState, context))
		{
			FormIndexDatum(info, slots[i], estate, values, nulls);
			index_insert(writer->indexes[index], values, nulls,
						 &slots[i]->tts_tid, writer->rel,
						 info->ii_Unique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO,
						 false, info);
		}
		ResetExprContext(context);
	}
	info->ii_ExpressionsState = NIL;
	info->ii_PredicateState = NULL;
	FreeExecutorState(estate);
}

static void
insert_index_entries(EsWriter *writer, int index,
					 TupleTableSlot **slots, int nslots)
{
	IndexInfo  *info = &writer->infos[index];
	Datum		values[INDEX_MAX_KEYS];
	bool		nulls[INDEX_MAX_KEYS];

	if (info->ii_Expressions != NIL || info->ii_Predicate != NIL)
	{
		insert_computed_entries(writer, index, slots, nslots);
		return;
	}
	for (int i = 0; i < nslots; i++)
	{
		FormIndexDatum(info, slots[i], NULL, values, nulls);
		index_insert(writer->indexes[index], values, nulls,
					 &slots[i]->tts_tid, writer->rel,
					 info->ii_Unique ? UNIQUE_CHECK_YES : UNIQUE_CHECK_NO,
					 false, info);
	}
}

/*
 * Insert rows.  Index by index, so that the pages of one stay in the cache.
 */
void
es_writer_insert(EsWriter *writer, TupleTableSlot **slots, int nslots)
{
	CommandId	cid = GetCurrentCommandId(true);

	if (nslots == 1)
		table_tuple_insert(writer->rel, slots[0], cid, 0, NULL);
	else
		table_multi_insert(writer->rel, slots, nslots, cid, 0, NULL);
	for (int i = 0; i < writer->nindexes; i++)
		insert_index_entries(writer, i, slots, nslots);
}

/*
 * Fetch the row that may be at "row"; the table may have become shorter since.
 */
bool
es_table_fetch(Relation rel, ItemPointer row, Snapshot snapshot,
			   TupleTableSlot *slot)
{
	return ItemPointerGetBlockNumber(row) < RelationGetNumberOfBlocks(rel) &&
		table_tuple_fetch_row_version(rel, row, snapshot, slot);
}

/*
 * Put a new version of a row, as the active snapshot sees it, in its place;
 * "row" follows it.  Nobody else may be changing it.
 */
static void
replace_row(EsWriter *writer, ItemPointer row, TupleTableSlot *slot)
{
	EsUpdateIndexes update_indexes;

	simple_table_tuple_update(writer->rel, row, slot, GetActiveSnapshot(),
							  &update_indexes);
	for (int i = 0; update_indexes && i < writer->nindexes; i++)
		insert_index_entries(writer, i, &slot, 1);
	ItemPointerCopy(&slot->tts_tid, row);
}

/*
 * Set columns of the row that was last at "row", from the second on: "values"
 * has one for each.  False, and nothing is done, where no row is there any more
 * that the active snapshot sees.
 */
bool
es_writer_update_row(EsWriter *writer, ItemPointer row, Datum *values)
{
	TupleTableSlot *old;
	bool		found;

	if (!ItemPointerIsValid(row))
		return false;
	old = table_slot_create(writer->rel, NULL);
	found = es_table_fetch(writer->rel, row, GetActiveSnapshot(), old);
	if (found)
	{
		TupleTableSlot *slot = es_slot_for_writing(writer);
		int			n = writer->ncolumns;

		slot_getallattrs(old);
		memset(slot->tts_isnull, false, n * sizeof(bool));
		slot->tts_values[0] = old->tts_values[0];
		memcpy(&slot->tts_values[1], values, (n - 1) * sizeof(Datum));
		ExecStoreVirtualTuple(slot);
		replace_row(writer, row, slot);
		ExecDropSingleTupleTableSlot(slot);
	}
	ExecDropSingleTupleTableSlot(old);
	return found;
}

/*
 * An empty slot for rows to insert.  What the caller does not fill in is NULL.
 */
TupleTableSlot *
es_slot_for_writing(const EsWriter *writer)
{
	TupleTableSlot *slot = MakeSingleTupleTableSlot(RelationGetDescr(writer->rel),
													&TTSOpsVirtual);

	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts * sizeof(bool));
	return slot;
}

/*
 * Insert one row given by its columns, as the EsTable counts them.
 */
void
es_writer_insert_row(EsWriter *writer, Datum *values, bool *nulls)
{
	TupleTableSlot *slot = es_slot_for_writing(writer);

	memcpy(slot->tts_values, values, writer->ncolumns * sizeof(Datum));
	memcpy(slot->tts_isnull, nulls, writer->ncolumns * sizeof(bool));
	ExecStoreVirtualTuple(slot);
	es_writer_insert(writer, &slot, 1);
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * Find the first row, in the given direction of an open index, that matches the
 * keys and is committed at this instant or our own, be it of this command.
 * The caller's lock sees to it that "this instant" is long enough.  The slot
 * is of the table's own kind and keeps the row's page pinned.
 */
bool
es_index_find_in(Relation rel, Relation index, ScanKey keys, int nkeys,
				 ScanDirection direction, TupleTableSlot *slot)
{
	IndexScanDesc scan = es_index_beginscan(rel, index, SnapshotSelf, nkeys);
	bool		found;

	index_rescan(scan, keys, nkeys, NULL, 0);
	found = index_getnext_slot(scan, direction, slot);
	index_endscan(scan);
	return found;
}

/*
 * The same, by the index's oid.
 */
bool
es_index_find(Relation rel, Oid index, ScanKey keys, int nkeys,
			  ScanDirection direction, TupleTableSlot *slot)
{
	Relation	indexrel = index_open(index, AccessShareLock);
	bool		found = es_index_find_in(rel, indexrel, keys, nkeys, direction, slot);

	index_close(indexrel, NoLock);
	return found;
}
