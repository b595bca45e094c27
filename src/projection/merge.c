/*-------------------------------------------------------------------------
 * merge.c
 *	  Shadow tables, and making tables what their shadows are.
 *
 * The shadows of a rebuild lie in a schema of their own, which belongs to the
 * projection's owner, under the names of the tables; the query finds them
 * because that schema comes first in its search_path.
 *
 * Tables are not replaced by their shadows, and neither is their storage.  The
 * difference is written: rows that are in the one and not in the other are
 * deleted and inserted, those that differ updated.  So whatever hangs on the
 * table or its rows goes on: views, prepared statements, grants, policies,
 * foreign keys both ways (which are checked), triggers, publications, and
 * snapshots taken before.  No reader waits for anything.
 *
 * A shadow is read by the query alone, if at all, and by the merge, which needs
 * no index.  Where the query does nothing but insert, the shadow has its unique
 * indexes only.
 *
 * The statements are made by our own SQL, and run as the owner.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_language.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "parser/parsetree.h"
#include "projection/merge.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/plancache.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/resowner.h"
#include "utils/syscache.h"

static EsStatement select_shadow_sql = ES_SQL(
	"SELECT 'create', s FROM es.shadow_sql($1) s", 1, INT4OID);
static EsStatement select_spare_sql = ES_SQL(
	"SELECT 'drop', s FROM es.spare_index_sql($1) s", 1, INT4OID);
static EsStatement select_merge_sql = ES_SQL(
	"SELECT m.kind, m.sql FROM es.merge_sql($1, $2) m", 2, INT4OID, INT4OID);

/*
 * A statement of ours to be run as the owner.
 */
typedef struct OwnersStatement
{
	char	   *kind;
	char	   *sql;
} OwnersStatement;

/*
 * The statements that a query of ours makes, in the current context.
 */
static List *
make_statements(EsStatement *maker, Datum *values)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *statements = NIL;
	EsSpi		spi;
	uint64		n;

	es_spi_begin(&spi);
	n = es_run(maker, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);
		OwnersStatement *s = palloc(sizeof(OwnersStatement));

		s->kind = pstrdup(es_spi_text(i, 1));
		s->sql = pstrdup(es_spi_text(i, 2));
		statements = lappend(statements, s);
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);
	return statements;
}

/*
 * Run a statement as this session's user, with the search_path given.  Row
 * security may raise an error but shall hide no row.
 */
static int64
run_as_owner(const char *sql, const char *search_path)
{
	int			guc_level = NewGUCNestLevel();
	int64		rows;

	(void) set_config_option("search_path", search_path, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	(void) set_config_option("row_security", "off", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute(sql, false, 0) < 0)
		elog(ERROR, "SPI_execute failed: %s", sql);
	rows = (int64) SPI_processed;
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	AtEOXact_GUC(true, guc_level);
	return rows;
}

/*
 * Run a command of ours with the rights of the extension's owner.
 */
static void
run_as_extension(const char *sql)
{
	EsSpi		spi;

	es_spi_begin(&spi);
	/* What a cascade drops is of no interest. */
	(void) set_config_option("client_min_messages", "warning", PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (SPI_execute(sql, false, 0) < 0)
		elog(ERROR, "SPI_execute failed: %s", sql);
	es_spi_end(&spi);
}

/*
 * Whether a function may look into tables.
 */
static bool
may_look(Oid function, void *context)
{
	HeapTuple	tuple;
	Form_pg_proc proc;
	bool		may;

	if (function < FirstNormalObjectId)
		return false;
	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	if (!HeapTupleIsValid(tuple))
		return true;
	proc = (Form_pg_proc) GETSTRUCT(tuple);
	may = proc->prokind != PROKIND_FUNCTION ||
		(proc->prolang != INTERNALlanguageId && proc->prolang != ClanguageId);
	ReleaseSysCache(tuple);
	return may;
}

/*
 * Whether a query may look into the tables of a schema, other than for a
 * conflict with what it inserts.
 */
static bool
may_read(Node *node, void *context)
{
	Oid			schema = *(Oid *) context;

	if (node == NULL)
		return false;
	if (IsA(node, Query))
	{
		Query	   *query = (Query *) node;
		int			excluded = query->onConflict ? query->onConflict->exclRelIndex : 0;

		for (int i = 1; i <= list_length(query->rtable); i++)
		{
			RangeTblEntry *rte = rt_fetch(i, query->rtable);

			if (rte->rtekind == RTE_RELATION && i != excluded &&
				(i != query->resultRelation || query->commandType != CMD_INSERT) &&
				get_rel_namespace(rte->relid) == schema)
				return true;
		}
		return query_tree_walker(query, may_read, context, 0);
	}
	return check_functions_in_node(node, may_look, NULL) ||
		expression_tree_walker(node, may_read, context);
}

/*
 * Whether the projection's query does nothing to the shadows but insert.
 */
static bool
only_inserts(EsProjection *p)
{
	Oid			schema = get_namespace_oid(psprintf("es_rebuild_%d", p->rebuild), false);
	int			guc_level = NewGUCNestLevel();
	bool		reads = false;
	SPIPlanPtr	plan;
	ListCell   *cell;

	(void) set_config_option("search_path", p->search_path, PGC_USERSET,
							 PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	plan = SPI_prepare(p->query, 0, NULL);
	if (plan == NULL)
		elog(ERROR, "SPI_prepare failed: %s", SPI_result_code_string(SPI_result));
	foreach(cell, SPI_plan_get_plan_sources(plan))
	{
		ListCell   *query;

		foreach(query, ((CachedPlanSource *) lfirst(cell))->query_list)
			reads = reads || may_read((Node *) lfirst(query), &schema);
	}
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	AtEOXact_GUC(true, guc_level);
	return !reads;
}

/*
 * Create the shadow tables.  The schema needs rights that the owner may lack;
 * what is in it is created by the owner.
 */
void
es_shadow_create(EsProjection *p)
{
	Datum		id = Int32GetDatum(p->rebuild);
	ListCell   *cell;

	run_as_extension(psprintf("CREATE SCHEMA es_rebuild_%d AUTHORIZATION %s",
							  p->rebuild,
							  quote_identifier(GetUserNameFromId(p->owner, false))));
	foreach(cell, make_statements(&select_shadow_sql, &id))
		(void) run_as_owner(((OwnersStatement *) lfirst(cell))->sql, "pg_catalog, pg_temp");
	CommandCounterIncrement();
	if (only_inserts(p))
		foreach(cell, make_statements(&select_spare_sql, &id))
			(void) run_as_owner(((OwnersStatement *) lfirst(cell))->sql, "pg_catalog, pg_temp");
}

void
es_shadow_drop(int rebuild)
{
	run_as_extension(psprintf("DROP SCHEMA IF EXISTS es_rebuild_%d CASCADE", rebuild));
}

/*
 * Raise an error where this transaction, which has filled shadows, has touched
 * a table that is served: a function of the query found it by another way than
 * the search_path.
 */
void
es_shadow_check_untouched(const EsProjection *p)
{
	for (int i = 0; i < p->ntables; i++)
	{
		Relation	rel = RelationIdGetRelation(p->tables[i]);
		bool		touched;

		if (rel == NULL)
			continue;
		touched = CheckRelationLockedByMe(rel, AccessShareLock, true);
		RelationClose(rel);
		if (touched)
			ereport(ERROR,
					(errcode(ERRCODE_ES_CANNOT_REBUILD),
					 errmsg("projection \"%s\" cannot be rebuilt: its query used the table \"%s\" that is served",
							p->name, get_rel_name(p->tables[i])),
					 errdetail("A rebuild finds the shadow of the table by the search_path."),
					 errhint("In functions that the query calls, name the table without a schema, and do not SET search_path.")));
	}
}

/*
 * Merge in one of the ways that es.merge_sql() knows; false where it does not
 * know it for these tables.
 */
static bool
merge(EsProjection *p, int way, EsMerged *merged)
{
	Datum		values[2] = {Int32GetDatum(p->rebuild), Int32GetDatum(way)};
	List	   *statements = make_statements(&select_merge_sql, values);
	ListCell   *cell;

	memset(merged, 0, sizeof(EsMerged));
	foreach(cell, statements)
	{
		OwnersStatement *s = (OwnersStatement *) lfirst(cell);
		int64		rows = run_as_owner(s->sql, p->served_path);

		if (strcmp(s->kind, "insert") == 0)
			merged->inserted += rows;
		else if (strcmp(s->kind, "update") == 0)
			merged->updated += rows;
		else
			merged->deleted += rows;
	}
	return statements != NIL;
}

/*
 * The same in a subtransaction; where a constraint stands in the way, its
 * error.
 */
static bool
try_merge(EsProjection *p, int way, EsMerged *merged, ErrorData **error)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	volatile bool done = false;

	*error = NULL;
	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		done = merge(p, way, merged);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		*error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;
	if (*error &&
		ERRCODE_TO_CATEGORY((*error)->sqlerrcode) != ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION)
		ReThrowError(*error);
	return done && *error == NULL;
}

/*
 * Make the tables what their shadows are, in the first of three ways that no
 * constraint stands in the way of: delete, update, insert makes room for the
 * unique values of new rows; insert, update, delete lets rows refer to new ones
 * before the old ones go; delete and insert without update lets rows exchange
 * unique values.
 */
void
es_shadow_merge(EsProjection *p, EsMerged *merged)
{
	ErrorData  *first = NULL;

	for (int way = 1; way <= 3; way++)
	{
		ErrorData  *error;

		if (try_merge(p, way, merged, &error))
			return;
		if (first == NULL)
			first = error;
	}
	ReThrowError(first);
}
