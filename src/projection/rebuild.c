/*-------------------------------------------------------------------------
 * rebuild.c
 *	  Rebuilding read models while they go on being served.
 *
 * A rebuild has checkpoints of its own, one for each partition, beside those
 * of what is served.  Its phases, each change of them a transaction:
 *
 *		prepare -> fill		the first partition creates the shadow tables
 *		fill				every partition applies the log from its beginning
 *							to the shadows, in large batches, as anything is
 *							applied: with its own narrowing and dead letters
 *		fill -> merge		when all are near the end
 *		merge -> done		the first partition locks the checkpoints of what
 *							is served, applies the rest, merges the shadows
 *							into the tables, moves the served checkpoints to
 *							where the shadows are, and drops these
 *
 * A crash at any moment leaves what is served as it was and the rebuild where
 * its checkpoints are.  The last transaction waits for no lock longer than
 * es.rebuild_lock_timeout; then it is tried again, later and later.
 *
 * A rebuild of one stream fills, in the last transaction, with those events of
 * the stream that the served tables have applied.
 *
 * Effects other than on the shadows would happen twice, so a projection that
 * appends cannot be rebuilt.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "fault.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "nodes/nodeFuncs.h"
#include "parser/parser.h"
#include "projection/batch.h"
#include "projection/define.h"
#include "projection/merge.h"
#include "projection/rebuild.h"
#include "projection/run.h"
#include "storage/lmgr.h"
#include "store/append.h"
#include "store/watermark.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(es_rebuild);
PG_FUNCTION_INFO_V1(es_cancel_rebuild);

/* Looks at the other partitions again after this time. */
#define NOT_YET_MS	50

static EsStatement insert_rebuild = ES_SQL(
	"WITH p AS (SELECT name, start_after, CASE WHEN $2 IS NULL THEN partitions ELSE 1 END AS n "
	"  FROM es.projection WHERE name = $1), "
	"r AS (INSERT INTO es.rebuild (projection, stream, start_after) "
	"  SELECT name, $2, start_after FROM p RETURNING id) "
	"INSERT INTO es.checkpoint (projection, rebuild, partition, position) "
	"SELECT p.name, r.id, i, p.start_after FROM p, r, generate_series(0, p.n - 1) i",
	2, TEXTOID, TEXTOID);
static EsStatement select_active = ES_SQL(
	"SELECT id FROM es.rebuild WHERE projection = $1 AND finished_at IS NULL", 1, TEXTOID);
static EsStatement begin_fill = ES_SQL(
	"WITH c AS (UPDATE es.checkpoint SET revision = revision + 1 WHERE rebuild = $1) "
	"UPDATE es.rebuild SET phase = 'fill', started_at = clock_timestamp() WHERE id = $1",
	1, INT4OID);
static EsStatement begin_merge = ES_SQL(
	"UPDATE es.rebuild SET phase = 'merge' WHERE id = $1", 1, INT4OID);
static EsStatement least_position = ES_SQL(
	"SELECT min(position) FROM es.checkpoint WHERE projection = $1 AND rebuild = $2",
	2, TEXTOID, INT4OID);
static EsStatement lock_served = ES_SQL(
	"SELECT FROM es.checkpoint WHERE projection = $1 AND rebuild = 0 ORDER BY partition FOR UPDATE",
	1, TEXTOID);
static EsStatement select_served = ES_SQL(
	"SELECT c.position, p.mode = 'sync', p.paused FROM es.projection p "
	"JOIN es.checkpoint c ON c.projection = p.name AND c.rebuild = 0 "
	"  AND c.partition = CASE WHEN $2 IS NULL OR p.mode = 'sync' THEN 0 "
	"    ELSE es.stream_partition($2, p.partitions) END "
	"WHERE p.name = $1",
	2, TEXTOID, TEXTOID);
static EsStatement lock_filled = ES_SQL(
	"SELECT FROM es.checkpoint WHERE projection = $1 AND rebuild = $2 ORDER BY partition FOR UPDATE",
	2, TEXTOID, INT4OID);
static EsStatement move_served = ES_SQL(
	"UPDATE es.checkpoint SET position = greatest(position, $2), catching_up = false, "
	"  revision = revision + 1, retries = 0, "
	"  error = NULL, error_at = NULL, error_sqlstate = NULL, error_position = NULL "
	"WHERE projection = $1 AND rebuild = 0",
	2, TEXTOID, INT8OID);
static EsStatement replace_letters = ES_SQL(
	"DELETE FROM es.dead_letter WHERE projection = $1 AND rebuild = 0 AND status <> 'discarded'",
	1, TEXTOID);
static EsStatement adopt_letters = ES_SQL(
	"UPDATE es.dead_letter SET rebuild = 0 WHERE projection = $1 AND rebuild = $2",
	2, TEXTOID, INT4OID);
static EsStatement finish_rebuild = ES_SQL(
	"WITH c AS (DELETE FROM es.checkpoint WHERE projection = $1 AND rebuild = $2 RETURNING events_applied), "
	"d AS (DELETE FROM es.dead_letter WHERE projection = $1 AND rebuild = $2) "
	"UPDATE es.rebuild SET phase = $3, finished_at = clock_timestamp(), position = $4, "
	"  merged_at = $5, rows_inserted = $6, rows_updated = $7, rows_deleted = $8, "
	"  events = (SELECT sum(events_applied) FROM c) WHERE id = $2",
	8, TEXTOID, INT4OID, TEXTOID, INT8OID, TIMESTAMPTZOID, INT8OID, INT8OID, INT8OID);
/* Whoever watches them is told that, instead of every key that has changed. */
static EsStatement announce_rebuilt = ES_SQL(
	"SELECT es.rebuilt(t.oid::regclass) FROM es.projection p, unnest(p.tables) t (oid) "
	"WHERE p.name = $1 AND EXISTS (SELECT FROM pg_trigger g "
	"  WHERE g.tgrelid = t.oid AND g.tgname = 'es_watch_insert')", 1, TEXTOID);
static EsStatement select_stream_events = ES_SQL(
	"SELECT e.position, e.category, e.type FROM es.event e WHERE e.stream = $1 AND e.position > $2 "
	"  AND e.position <= least($3, (SELECT min(d.position) - 1 FROM es.dead_letter d "
	"    WHERE d.projection = $4 AND d.rebuild = 0 AND d.stream = $1 AND d.status <> 'discarded')) "
	"ORDER BY e.version",
	4, TEXTOID, INT8OID, INT8OID, TEXTOID);
static EsStatement select_declared = ES_SQL(
	"SELECT query, tables, keys IS NOT NULL FROM es.projection WHERE name = $1", 1, TEXTOID);

static uint64
run(EsStatement *statement, Datum *values, const char *nulls)
{
	EsSpi		spi;
	uint64		n;

	es_spi_begin(&spi);
	n = es_run(statement, values, nulls);
	es_spi_end(&spi);
	return n;
}

/*
 * A number that one of our statements finds, or 0.
 */
static int64
find_number(EsStatement *statement, Datum *values)
{
	int64		number = 0;
	bool		isnull;
	EsSpi		spi;

	es_spi_begin(&spi);
	if (es_run(statement, values, NULL) > 0)
	{
		Datum		value = es_spi_value(0, 1, &isnull);

		if (!isnull)
			number = SPI_gettypeid(SPI_tuptable->tupdesc, 1) == INT4OID
				? DatumGetInt32(value) : DatumGetInt64(value);
	}
	es_spi_end(&spi);
	return number;
}

/*
 * Refuse what would change a projection under its rebuild.
 */
void
es_rebuild_refuse_if_active(Datum name, const char *what)
{
	if (find_number(&select_active, &name) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("%s of projection \"%s\" cannot be changed while it is rebuilt",
						what, TextDatumGetCString(name)),
				 errhint("Wait until es_stat_rebuild says that it is done, or call es_cancel_rebuild().")));
}

/*
 * Put an end to the rebuild of a locked projection, if there is one.
 */
void
es_rebuild_cancel(Datum name)
{
	int			id = (int) find_number(&select_active, &name);
	Datum		values[8] = {name, Int32GetDatum(id), CStringGetTextDatum("cancelled")};

	if (id == 0)
		return;
	(void) run(&lock_filled, values, NULL);
	(void) run(&finish_rebuild, values, "   nnnnn");
	es_shadow_drop(id);
}

/*
 * Apply to the shadows, with no effect elsewhere; and move the checkpoint, but
 * for a stream, which has none.
 */
static void
fill(EsProjection *p, const EsBatch *batch, int64 settled)
{
	es_append_refused = true;
	PG_TRY();
	{
		if (p->filter.stream)
			es_projection_run(p, &p->filter, batch->after, batch->to, NULL, false);
		else
			es_projection_apply_batch(p, batch, settled);
	}
	PG_FINALLY();
	{
		es_append_refused = false;
	}
	PG_END_TRY();
	es_shadow_check_untouched(p);
}

static EsApplied
prepare(EsProjection *p)
{
	Datum		id = Int32GetDatum(p->rebuild);
	EsApplied	taken = es_projection_take(p);

	if (taken != ES_APPLIED)
		return taken;
	p->whole = true;
	es_shadow_create(p);
	(void) run(&begin_fill, &id, NULL);
	es_projections_changed();
	return ES_STEPPED;
}

/*
 * Say that the end begins: a merge is seen by nobody before it is done.
 */
static EsApplied
announce_merge(EsProjection *p)
{
	Datum		id = Int32GetDatum(p->rebuild);
	EsApplied	taken = es_projection_take(p);

	if (taken != ES_APPLIED)
		return taken;
	p->whole = true;
	(void) run(&begin_merge, &id, NULL);
	return ES_STEPPED;
}

/*
 * How the served tables stand; the checkpoints are locked.
 */
static int64
lock_served_tables(EsProjection *p, bool *paused)
{
	Datum		values[2] = {CStringGetTextDatum(p->name), PointerGetDatum(p->filter.stream)};
	const char *nulls = p->filter.stream ? "  " : " n";
	int64		position;
	bool		sync;
	bool		isnull;
	EsSpi		spi;

	(void) run(&lock_served, values, NULL);
	es_spi_begin(&spi);
	if (es_run(&select_served, values, nulls) != 1)
		elog(ERROR, "projection \"%s\" has no checkpoint", p->name);
	position = DatumGetInt64(es_spi_value(0, 1, &isnull));
	sync = DatumGetBool(es_spi_value(0, 2, &isnull));
	*paused = DatumGetBool(es_spi_value(0, 3, &isnull));
	es_spi_end(&spi);

	/* Appenders write the tables of a synchronous one. */
	if (sync)
	{
		int64		last;

		LockRelationOid(es_catalog()->event, ShareRowExclusiveLock);
		last = es_last_position();
		position = Max(position, last);
	}
	return position;
}

/*
 * Bring all partitions of the rebuild to the settled position.
 */
static int64
fill_rest(EsProjection *p)
{
	Datum		values[2] = {CStringGetTextDatum(p->name), Int32GetDatum(p->rebuild)};
	int64		settled;
	ListCell   *cell;

	(void) run(&lock_filled, values, NULL);
	settled = es_settled_position();

	/* Where this fails, the usual way is gone to here, which narrows it down. */
	p->whole = false;
	p->fill_first = settled;
	p->attempt_after = p->position;
	p->attempt_to = Max(settled, p->position + 2);
	foreach(cell, es_rebuild_partitions(p->rebuild))
	{
		EsProjection *part = (EsProjection *) lfirst(cell);

		while (part->position < settled)
		{
			EsBatch		batch = es_batch_next(part, settled);

			fill(part, &batch, settled);
			part->position = batch.to;
		}
	}
	p->fill_first = 0;
	return settled;
}

static void
finish(EsProjection *p, int64 position, TimestampTz merged_at, const EsMerged *merged)
{
	Datum		values[8];

	values[0] = CStringGetTextDatum(p->name);
	values[1] = Int32GetDatum(p->rebuild);
	values[2] = CStringGetTextDatum("done");
	values[3] = Int64GetDatum(position);
	values[4] = TimestampTzGetDatum(merged_at);
	values[5] = Int64GetDatum(merged->inserted);
	values[6] = Int64GetDatum(merged->updated);
	values[7] = Int64GetDatum(merged->deleted);
	(void) run(&finish_rebuild, values, NULL);
	es_shadow_drop(p->rebuild);
	es_projections_changed();
}

static void
set_lock_timeout(void)
{
	(void) set_config_option("lock_timeout",
							 GetConfigOption("es.rebuild_lock_timeout", false, false),
							 PGC_SUSET, PGC_S_OVERRIDE, GUC_ACTION_LOCAL, true, 0, false);
}

/*
 * The last transaction of a rebuild: merge.
 */
static EsApplied
merge(EsProjection *p)
{
	Datum		values[2] = {CStringGetTextDatum(p->name), Int32GetDatum(p->rebuild)};
	TimestampTz began = GetCurrentTimestamp();
	EsApplied	taken;
	int64		position;
	bool		paused;
	EsMerged	merged;

	set_lock_timeout();
	p->whole = true;
	(void) lock_served_tables(p, &paused);
	taken = es_projection_take(p);
	if (taken != ES_APPLIED || paused)
		return paused ? ES_CAUGHT_UP : taken;
	position = fill_rest(p);
	p->whole = true;
	es_shadow_merge(p, &merged);
	values[1] = Int64GetDatum(position);
	(void) run(&move_served, values, NULL);
	(void) run(&replace_letters, values, NULL);
	values[1] = Int32GetDatum(p->rebuild);
	(void) run(&adopt_letters, values, NULL);
	(void) run(&announce_rebuilt, values, NULL);
	finish(p, position, began, &merged);
	ES_FAULT("projector.merged");
	return ES_STEPPED;
}

/*
 * Apply to the shadows the events of one stream up to a position.
 */
static void
fill_stream(EsProjection *p, int64 to)
{
	Datum		values[4] = {PointerGetDatum(p->filter.stream),
		Int64GetDatum(p->start_after), Int64GetDatum(to),
	CStringGetTextDatum(p->name)};
	MemoryContext context = CurrentMemoryContext;
	List	   *positions = NIL;
	ListCell   *cell;
	uint64		n;
	EsSpi		spi;

	es_spi_begin(&spi);
	n = es_run(&select_stream_events, values, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		int64		position = DatumGetInt64(es_spi_value(i, 1, &isnull));
		MemoryContext old = MemoryContextSwitchTo(context);
		int64	   *copy = palloc(sizeof(int64));

		*copy = position;
		if (es_filter_takes(&p->filter, position, p->filter.stream,
							DatumGetTextPP(es_spi_value(i, 2, &isnull)),
							DatumGetTextPP(es_spi_value(i, 3, &isnull))))
			positions = lappend(positions, copy);
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);

	foreach(cell, positions)
	{
		EsBatch		batch = {*(int64 *) lfirst(cell) - 1, *(int64 *) lfirst(cell), false};

		CHECK_FOR_INTERRUPTS();
		fill(p, &batch, to);
	}
}

/*
 * A rebuild of one stream, all of it.
 */
static EsApplied
rebuild_stream(EsProjection *p)
{
	TimestampTz began = GetCurrentTimestamp();
	EsApplied	taken;
	int64		position;
	bool		paused;
	EsMerged	merged;

	p->whole = true;
	set_lock_timeout();
	position = lock_served_tables(p, &paused);
	taken = es_projection_take(p);
	if (taken != ES_APPLIED)
		return taken;
	fill_stream(p, position);
	es_shadow_merge(p, &merged);
	finish(p, position, began, &merged);
	return ES_STEPPED;
}

/*
 * Whether all partitions are so near the end that the rest can be applied in
 * the last transaction.
 */
static bool
is_nearly_filled(EsProjection *p, int64 settled)
{
	Datum		values[2] = {CStringGetTextDatum(p->name), Int32GetDatum(p->rebuild)};

	int64		least = find_number(&least_position, values);

	return least >= p->fill_first && settled - least <= es_batch_size;
}

/*
 * Whether there is something to do for a partition of a rebuild.  What is
 * paused is not replaced either.
 */
bool
es_rebuild_has_work(const EsProjection *p, int64 settled)
{
	if (p->partition == 0 && !(p->paused && p->filling))
		return true;
	return p->filling && p->position < settled;
}

/*
 * Sort and hash in what the administrator has set aside for maintenance, as
 * CREATE INDEX does, until the end of this transaction.
 */
static void
use_maintenance_memory(void)
{
	if (work_mem < maintenance_work_mem)
		(void) set_config_option("work_mem",
								 GetConfigOption("maintenance_work_mem", false, false),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL,
								 true, 0, false);
}

/*
 * Take a rebuild a step further, in a transaction as for
 * es_projection_apply().
 */
EsApplied
es_rebuild_step(EsProjection *p)
{
	int64		settled = es_settled_position();
	EsApplied	taken;
	EsBatch		batch;

	p->whole = false;
	use_maintenance_memory();
	if (!p->filling)
		return prepare(p);
	if (p->filter.stream)
		return rebuild_stream(p);
	if (p->partition == 0 && !p->paused && is_nearly_filled(p, settled))
		return p->merging ? merge(p) : announce_merge(p);
	if (p->partition == 0 && p->position >= settled)
	{
		p->retry_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), NOT_YET_MS);
		return ES_CAUGHT_UP;
	}

	taken = es_projection_take(p);
	if (taken != ES_APPLIED)
		return taken;
	settled = es_settled_position();
	batch = es_batch_next(p, settled);
	if (batch.to <= p->position)
		return ES_CAUGHT_UP;
	fill(p, &batch, settled);
	return ES_APPLIED;
}

/*
 * What is looked for in the query: tables of the projection with a schema.
 */
static bool
check_names(Node *node, void *context)
{
	const ArrayType *tables = (const ArrayType *) context;

	if (node == NULL)
		return false;
	if (IsA(node, RangeVar) && ((RangeVar *) node)->schemaname)
	{
		RangeVar   *name = (RangeVar *) node;
		Oid			relid = RangeVarGetRelid(name, NoLock, true);

		for (int i = 0; i < ARR_DIMS(tables)[0]; i++)
			if (((Oid *) ARR_DATA_PTR(tables))[i] == relid)
				ereport(ERROR,
						(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
						 errmsg("the query names table \"%s.%s\" with its schema",
								name->schemaname, name->relname),
						 errdetail("A rebuild finds the shadow of the table by the search_path."),
						 errhint("Use es_alter_projection(name, query => ...) with \"%s\" alone.",
								 name->relname)));
	}
	return raw_expression_tree_walker(node, check_names, context);
}

static void
check_distinct_names(const ArrayType *tables)
{
	const Oid  *oids = (const Oid *) ARR_DATA_PTR(tables);

	for (int i = 0; i < ARR_DIMS(tables)[0]; i++)
		for (int j = 0; j < i; j++)
			if (strcmp(get_rel_name(oids[i]), get_rel_name(oids[j])) == 0)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 errmsg("a projection with two tables of one name cannot be rebuilt"),
						 errdetail("They are \"%s\" in two schemas.", get_rel_name(oids[i])),
						 errhint("Rename one of them.")));
}

/*
 * Refuse what can be seen to be impossible.
 */
static void
check_can_rebuild(Datum name, bool stream)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *query;
	ArrayType  *tables = NULL;
	bool		keys;
	bool		isnull;
	Datum		value;
	ListCell   *cell;
	EsSpi		spi;

	es_spi_begin(&spi);
	(void) es_run(&select_declared, &name, NULL);
	query = MemoryContextStrdup(context, es_spi_text(0, 1));
	value = es_spi_value(0, 2, &isnull);
	if (!isnull)
	{
		MemoryContext old = MemoryContextSwitchTo(context);

		tables = DatumGetArrayTypePCopy(value);
		MemoryContextSwitchTo(old);
	}
	keys = DatumGetBool(es_spi_value(0, 3, &isnull));
	es_spi_end(&spi);

	if (tables == NULL || ARR_NDIM(tables) != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projection \"%s\" declares no tables", TextDatumGetCString(name)),
				 errhint("Create it with tables => '{...}', the tables that its query writes.")));
	if (stream && !keys)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projection \"%s\" declares no keys", TextDatumGetCString(name)),
				 errhint("Create it with keys => '{...}', for each table the column that holds the stream.")));
	check_distinct_names(tables);
	foreach(cell, raw_parser(query, RAW_PARSE_DEFAULT))
		(void) check_names((Node *) lfirst_node(RawStmt, cell)->stmt, tables);
}

/*
 * es_rebuild(name, stream)
 *
 * Build the tables of a projection anew from the log, or, for a projection
 * with keys, the rows of one stream.  Goes on in a projector; see
 * es_stat_rebuild.  Errors: 42704 where there is no such projection, 42501 for
 * those who are not the owner, 55006 where it is being rebuilt, 55000 where it
 * cannot be.  Shadow tables are the way of pg_repack and gh-ost, merging the
 * difference that of REFRESH MATERIALIZED VIEW CONCURRENTLY.
 */
Datum
es_rebuild(PG_FUNCTION_ARGS)
{
	Datum		values[2];
	bool		stream = !PG_ARGISNULL(1);

	(void) es_database();
	es_check_name("projection name", PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	values[0] = PG_GETARG_DATUM(0);
	values[1] = stream ? PG_GETARG_DATUM(1) : (Datum) 0;
	if (stream)
		es_check_name("stream name", PG_GETARG_TEXT_PP(1));
	es_projection_lock(values[0]);
	if (find_number(&select_active, values) != 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_IN_USE),
				 errmsg("projection \"%s\" is being rebuilt", TextDatumGetCString(values[0])),
				 errhint("See es_stat_rebuild; es_cancel_rebuild() gives it up.")));
	check_can_rebuild(values[0], stream);
	(void) run(&insert_rebuild, values, stream ? "  " : " n");
	es_projections_changed();
	PG_RETURN_VOID();
}

/*
 * es_cancel_rebuild(name): give up the rebuild under way; what is served stays
 * as it is.  55000 where there is none.
 */
Datum
es_cancel_rebuild(PG_FUNCTION_ARGS)
{
	Datum		name;

	es_check_name("projection name", PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	name = PG_GETARG_DATUM(0);
	es_projection_lock(name);
	if (find_number(&select_active, &name) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("projection \"%s\" is not being rebuilt", TextDatumGetCString(name))));
	es_rebuild_cancel(name);
	es_projections_changed();
	PG_RETURN_VOID();
}
