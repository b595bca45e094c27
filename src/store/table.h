/*-------------------------------------------------------------------------
 * table.h
 *	  Reading and writing our own tables past SPI and the executor.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_TABLE_H
#define ES_STORE_TABLE_H

#include "access/genam.h"
#include "executor/tuptable.h"
#include "nodes/execnodes.h"
#include "utils/relcache.h"

/*
 * What is kept of a table between calls.  Declare it static, by ES_TABLE(); it
 * is built at first use and again after an invalidation.
 */
typedef struct EsTable
{
	int			ncolumns;
	Oid			types[8];		/* of the columns */
	bool		valid;
	Oid			relid;
	MemoryContext context;
	int			nindexes;
	Oid		   *indexes;
	IndexInfo **infos;
	struct EsTable *next;		/* of those that were used */
} EsTable;

/* What the C code takes a table to be: its columns, by their types. */
#define ES_TABLE(ncolumns_, ...) \
	{.ncolumns = (ncolumns_), .types = {__VA_ARGS__}}

/*
 * A table that is open for writing.
 */
typedef struct EsWriter
{
	Relation	rel;
	int			ncolumns;
	int			nindexes;
	Relation   *indexes;
	IndexInfo  *infos;
} EsWriter;

extern void es_writer_open(EsWriter *writer, EsTable *table, Oid relid);
extern void es_writer_close(EsWriter *writer);
extern TupleTableSlot *es_slot_for_writing(const EsWriter *writer);
extern void es_writer_insert(EsWriter *writer, TupleTableSlot **slots, int nslots);
extern void es_writer_insert_row(EsWriter *writer, Datum *values, bool *nulls);
extern bool es_writer_update_row(EsWriter *writer, ItemPointer row, Datum *values);

extern bool es_table_fetch(Relation rel, ItemPointer row, Snapshot snapshot,
						   TupleTableSlot *slot);
extern bool es_index_find_in(Relation rel, Relation index, ScanKey keys,
							 int nkeys, ScanDirection direction,
							 TupleTableSlot *slot);
extern bool es_index_find(Relation rel, Oid index, ScanKey keys, int nkeys,
						  ScanDirection direction, TupleTableSlot *slot);

#endif							/* ES_STORE_TABLE_H */
