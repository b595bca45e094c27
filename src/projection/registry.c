/*-------------------------------------------------------------------------
 * registry.c
 *	  Reading the definitions of projections.
 *
 * Every change is counted at commit, by which the workers learn of it, and
 * wakes them.  The relcache invalidation of es.projection tells the session
 * that makes the change, and everybody where the table itself is replaced.
 * To workers that is a hint: whoever applies a partition locks its checkpoint
 * and compares the revision there with that of the definition.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "lib/stringinfo.h"
#include "projection/poison.h"
#include "projection/registry.h"
#include "store/watermark.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/varlena.h"

/* What projection_from_row() reads, in this order. */
#define PARTITIONS \
	"SELECT p.name, p.owner::oid, p.query, p.search_path, p.categories, p.types, " \
	"  coalesce(p.batch_size, 0), p.on_error = 'skip', p.mode = 'sync', p.paused, p.start_after, " \
	"  p.partitions, c.partition, c.rebuild, c.revision, c.catching_up, c.position, " \
	"  c.retries, c.error_at, " \
	"  (SELECT array_agg(DISTINCT d.stream) FROM es.dead_letter d " \
	"    WHERE d.projection = p.name AND d.rebuild = c.rebuild AND d.status <> 'discarded'), " \
	"  (SELECT array_agg(d.position ORDER BY d.position) FROM es.dead_letter d " \
	"    WHERE c.rebuild > 0 AND d.projection = p.name AND d.rebuild = 0 AND d.status = 'discarded'), " \
	"  coalesce(c.error_position, 0), p.tables::oid[], r.stream, " \
	"  r.phase IN ('fill', 'merge'), r.phase = 'merge' " \
	"FROM es.projection p JOIN es.checkpoint c ON c.projection = p.name " \
	"LEFT JOIN es.rebuild r ON r.id = c.rebuild "

static EsStatement select_of_owner = ES_SQL(
	PARTITIONS
	"WHERE p.owner = $1 AND (c.rebuild > 0 OR p.mode = 'async' AND NOT p.paused) "
	"ORDER BY p.name, c.rebuild, c.partition",
	1, REGROLEOID);
static EsStatement select_by_name = ES_SQL(
	PARTITIONS "WHERE p.name = $1 AND c.rebuild = 0 ORDER BY c.partition",
	1, TEXTOID);
static EsStatement select_rebuild = ES_SQL(
	PARTITIONS "WHERE c.rebuild = $1 ORDER BY c.partition", 1, INT4OID);
static EsStatement select_sync = ES_SQL(
	PARTITIONS
	"WHERE p.mode = $1 AND c.rebuild = 0 AND c.partition = 0 ORDER BY p.name",
	1, TEXTOID);
static EsStatement select_owners = ES_SQL(
	"SELECT o.owner::oid, (coalesce(max(o.n) FILTER (WHERE NOT heavy), 0) + "
	"  coalesce(sum(o.n) FILTER (WHERE heavy), 0))::int "
	"FROM (SELECT p.owner, p.name, c.rebuild > 0 OR c.catching_up AS heavy, count(*) AS n "
	"  FROM es.projection p JOIN es.checkpoint c ON c.projection = p.name "
	"  WHERE c.rebuild > 0 OR p.mode = 'async' AND NOT p.paused GROUP BY 1, 2, 3) o "
	"JOIN pg_roles r ON r.oid = o.owner GROUP BY 1 ORDER BY 1",
	0, InvalidOid);

/* Counts the invalidations of es.projection that this session has heard of. */
static uint64 generation = 1;

static void
count_change(Datum arg, Oid relid)
{
	const EsCatalog *catalog = es_catalog_cached();

	if (relid == InvalidOid || catalog == NULL || relid == catalog->projection)
		generation++;
}

void
es_projection_registry_init(void)
{
	CacheRegisterRelcacheCallback(count_change, (Datum) 0);
}

/*
 * Rises whenever the definitions may have changed.  Up to date once a
 * transaction has begun; take it before the snapshot that reads them.
 */
uint64
es_projections_generation(void)
{
	return generation + es_changes();
}

/*
 * Let everybody learn the definitions anew when this transaction commits.
 */
void
es_projections_changed(void)
{
	CacheInvalidateRelcacheByRelid(es_catalog()->projection);
	es_wake_at_commit();
}

/*
 * The array in a column, copied into the current context, or NULL.
 */
static ArrayType *
array_column(uint64 row, int column)
{
	bool		isnull;
	Datum		value = es_spi_value(row, column, &isnull);

	return isnull ? NULL : DatumGetArrayTypePCopy(value);
}

/*
 * The search_path of a projection: a temporary table of the session, which the
 * query may run in for its sync projections, must not stand before its tables.
 */
static char *
effective_path(const char *recorded)
{
	List	   *names;
	ListCell   *cell;
	StringInfoData path;

	if (!SplitIdentifierString(pstrdup(recorded), ',', &names))
		elog(ERROR, "invalid search_path \"%s\"", recorded);
	initStringInfo(&path);
	foreach(cell, names)
	{
		char	   *name = (char *) lfirst(cell);

		if (strcmp(name, "pg_temp") != 0)
			appendStringInfo(&path, "%s, ", quote_identifier(name));
	}
	appendStringInfoString(&path, "pg_temp");
	return path.data;
}

static void
fill_filter(EsProjection *p, uint64 row)
{
	EsFilter   *filter = &p->filter;
	ArrayType  *parked = array_column(row, 20);
	ArrayType  *skipped = array_column(row, 21);
	bool		isnull;
	Datum		value;

	value = es_spi_value(row, 24, &isnull);
	filter->stream = isnull ? NULL : DatumGetTextPCopy(value);
	es_filter_from_arrays(filter, array_column(row, 5), array_column(row, 6));
	filter->partitions = (p->sync && p->rebuild == 0) || filter->stream ? 1 : p->partitions;
	filter->partition = p->partition;
	es_filter_set_parked(filter, parked);
	if (skipped)
	{
		filter->skipped = (int64 *) ARR_DATA_PTR(skipped);
		filter->nskipped = ArrayGetNItems(ARR_NDIM(skipped), ARR_DIMS(skipped));
	}
	p->filtered = filter->categories || filter->types || filter->partitions > 1 ||
		filter->parked || filter->skipped || filter->stream;
}

static void
fill_tables(EsProjection *p, uint64 row)
{
	ArrayType  *tables = array_column(row, 23);

	if (tables == NULL)
		return;
	p->tables = (Oid *) ARR_DATA_PTR(tables);
	p->ntables = ArrayGetNItems(ARR_NDIM(tables), ARR_DIMS(tables));
}

static EsProjection *
projection_from_row(uint64 row)
{
	EsProjection *p = palloc0(sizeof(EsProjection));
	bool		isnull;
	Datum		failed_at;

	p->name = pstrdup(es_spi_text(row, 1));
	p->retries = DatumGetInt32(es_spi_value(row, 18, &isnull));
	failed_at = es_spi_value(row, 19, &isnull);
	if (!isnull)
		p->retry_at = es_retry_time(DatumGetTimestampTz(failed_at), p->retries);
	p->owner = DatumGetObjectId(es_spi_value(row, 2, &isnull));
	p->query = pstrdup(es_spi_text(row, 3));
	p->search_path = effective_path(es_spi_text(row, 4));
	p->batch_size = DatumGetInt32(es_spi_value(row, 7, &isnull));
	p->skips_errors = DatumGetBool(es_spi_value(row, 8, &isnull));
	p->sync = DatumGetBool(es_spi_value(row, 9, &isnull));
	p->paused = DatumGetBool(es_spi_value(row, 10, &isnull));
	p->start_after = DatumGetInt64(es_spi_value(row, 11, &isnull));
	p->partitions = DatumGetInt32(es_spi_value(row, 12, &isnull));
	p->partition = DatumGetInt32(es_spi_value(row, 13, &isnull));
	p->rebuild = DatumGetInt32(es_spi_value(row, 14, &isnull));
	p->revision = DatumGetInt64(es_spi_value(row, 15, &isnull));
	p->catching_up = DatumGetBool(es_spi_value(row, 16, &isnull));
	p->position = DatumGetInt64(es_spi_value(row, 17, &isnull));
	p->error_position = DatumGetInt64(es_spi_value(row, 22, &isnull));
	p->filling = DatumGetBool(es_spi_value(row, 25, &isnull)) && !isnull;
	p->merging = DatumGetBool(es_spi_value(row, 26, &isnull)) && !isnull;
	p->served_path = p->search_path;
	if (p->rebuild > 0)
		p->search_path = psprintf("es_rebuild_%d, %s", p->rebuild, p->served_path);
	fill_filter(p, row);
	fill_tables(p, row);
	return p;
}

/*
 * Projections as a statement finds them, in the current context.
 */
static List *
read_projections(EsStatement *statement, Datum key)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *projections = NIL;
	EsSpi		spi;
	uint64		n;

	es_spi_begin(&spi);
	n = es_run_latest(statement, &key, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		projections = lappend(projections, projection_from_row(i));
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);
	return projections;
}

static List *
keep_plans(List *projections)
{
	ListCell   *cell;

	foreach(cell, projections)
		((EsProjection *) lfirst(cell))->keep_plan = true;
	return projections;
}

/*
 * What a worker of an owner has to apply: the partitions of the asynchronous
 * projections that are not paused, and those of rebuilds.
 */
List *
es_projections_of(Oid owner)
{
	return keep_plans(read_projections(&select_of_owner, ObjectIdGetDatum(owner)));
}

/*
 * The projections that appenders apply.
 */
List *
es_sync_projections(void)
{
	return keep_plans(read_projections(&select_sync, CStringGetTextDatum("sync")));
}

/*
 * The partitions of one projection.
 */
List *
es_projection_partitions(const char *name)
{
	return read_projections(&select_by_name, CStringGetTextDatum(name));
}

/*
 * The partitions of a rebuild.
 */
List *
es_rebuild_partitions(int rebuild)
{
	return read_projections(&select_rebuild, Int32GetDatum(rebuild));
}

/*
 * The roles that have something to apply, as a list of EsOwner in the current
 * context.
 *
 * Processes are worth having for the partitions of the projection that has
 * most, and, so that these do not wait for it, for each partition that catches
 * up or is rebuilt.
 */
List *
es_projection_owners(void)
{
	MemoryContext context = CurrentMemoryContext;
	List	   *owners = NIL;
	EsSpi		spi;
	uint64		n;

	es_spi_begin(&spi);
	n = es_run(&select_owners, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		MemoryContext old = MemoryContextSwitchTo(context);
		EsOwner    *owner = palloc0(sizeof(EsOwner));

		owner->role = DatumGetObjectId(es_spi_value(i, 1, &isnull));
		owner->processes = DatumGetInt32(es_spi_value(i, 2, &isnull));
		owners = lappend(owners, owner);
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);
	return owners;
}
