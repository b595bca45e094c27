/*-------------------------------------------------------------------------
 * alter.c
 *	  es_alter_projection(): changing a projection without losing or repeating
 *	  an event.
 *
 * All of it happens with the checkpoints locked, in one transaction.  For
 * another number of partitions these are brought to one position first, from
 * where the new ones go on.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "projection/define.h"
#include "projection/rebuild.h"
#include "projection/registry.h"
#include "projection/sync.h"
#include "store/append.h"
#include "utils/builtins.h"
#include "utils/guc.h"

PG_FUNCTION_INFO_V1(es_alter_projection);

/* The arguments of es_alter_projection(). */
enum
{
	ARG_NAME,
	ARG_MODE,
	ARG_BATCH_SIZE,
	ARG_PARTITIONS,
	ARG_ON_ERROR,
	ARG_QUERY
};

static EsStatement update_projection = ES_SQL(
	"UPDATE es.projection SET on_error = coalesce($2, on_error), query = coalesce($3, query), "
	"  batch_size = CASE WHEN $4 IS NULL THEN batch_size ELSE nullif($4, 0) END "
	"WHERE name = $1",
	4, TEXTOID, TEXTOID, TEXTOID, INT4OID);
static EsStatement set_partitions = ES_SQL(
	"UPDATE es.projection SET partitions = $2 WHERE name = $1", 2, TEXTOID, INT4OID);
static EsStatement delete_partitions = ES_SQL(
	"DELETE FROM es.checkpoint WHERE projection = $1 AND rebuild = 0 AND partition >= $2",
	2, TEXTOID, INT4OID);
static EsStatement insert_partitions = ES_SQL(
	"INSERT INTO es.checkpoint (projection, partition, position, revision) "
	"SELECT c.projection, n, c.position, c.revision FROM es.checkpoint c, generate_series(1, $2 - 1) n "
	"WHERE c.projection = $1 AND c.rebuild = 0 AND c.partition = 0 ON CONFLICT DO NOTHING",
	2, TEXTOID, INT4OID);
static EsStatement move_letters = ES_SQL(
	"UPDATE es.dead_letter SET partition = es.stream_partition(stream, $2) "
	"WHERE projection = $1 AND rebuild = 0", 2, TEXTOID, INT4OID);

static void
run(EsStatement *statement, Datum *values, const char *nulls)
{
	EsSpi		spi;

	es_spi_begin(&spi);
	(void) es_run(statement, values, nulls);
	es_spi_end(&spi);
}

static char *
word_argument(FunctionCallInfo fcinfo, int arg, const char *option,
			  const char *one, const char *other)
{
	char	   *value;

	if (PG_ARGISNULL(arg))
		return NULL;
	value = text_to_cstring(PG_GETARG_TEXT_PP(arg));
	es_check_word(value, option, one, other);
	return value;
}

/*
 * Split a projection into another number of partitions.
 */
static void
split(Datum name, int n)
{
	List	   *partitions = es_projection_open(name, "es_alter_projection(partitions)");
	Datum		values[2] = {name, Int32GetDatum(n)};
	int64		target = 0;
	ListCell   *cell;

	foreach(cell, partitions)
	{
		EsProjection *p = (EsProjection *) lfirst(cell);

		target = Max(target, p->position);
	}
	if (!((EsProjection *) linitial(partitions))->sync)
		(void) es_projection_catch_up(partitions, target, DT_NOEND);
	run(&set_partitions, values, NULL);
	run(&delete_partitions, values, NULL);
	run(&insert_partitions, values, NULL);
	run(&move_letters, values, NULL);
}

/*
 * The options that only have to be written down.
 */
static void
update(FunctionCallInfo fcinfo)
{
	static const int args[] = {ARG_NAME, ARG_ON_ERROR, ARG_QUERY, ARG_BATCH_SIZE};
	Datum		values[4];
	char		nulls[] = "    ";

	for (int i = 0; i < (int) lengthof(args); i++)
	{
		values[i] = PG_ARGISNULL(args[i]) ? (Datum) 0 : PG_GETARG_DATUM(args[i]);
		if (PG_ARGISNULL(args[i]))
			nulls[i] = 'n';
	}
	run(&update_projection, values, nulls);
}

static void
check_arguments(FunctionCallInfo fcinfo, const char *mode)
{
	if (!PG_ARGISNULL(ARG_BATCH_SIZE) && PG_GETARG_INT32(ARG_BATCH_SIZE) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("batch_size must be at least 1"),
				 errdetail("It is %d.", PG_GETARG_INT32(ARG_BATCH_SIZE)),
				 errhint("Give 0 to go by es.batch_size again.")));
	if (!PG_ARGISNULL(ARG_PARTITIONS))
		es_check_partitions(PG_GETARG_INT32(ARG_PARTITIONS));
	(void) word_argument(fcinfo, ARG_ON_ERROR, "on_error", "stop", "skip");
}

/*
 * A new query must fit the tables that the projection's search_path finds, and
 * be one that its owner may run.
 */
static void
check_query(Datum name, const char *query)
{
	List	   *partitions = es_projection_partitions(TextDatumGetCString(name));
	EsProjection *p = (EsProjection *) linitial(partitions);
	int			guc_level = NewGUCNestLevel();
	Oid			user;
	int			security;

	GetUserIdAndSecContext(&user, &security);
	if (user != p->owner)
		SetUserIdAndSecContext(p->owner,
							   security | SECURITY_LOCAL_USERID_CHANGE |
							   SECURITY_RESTRICTED_OPERATION);
	(void) set_config_option("search_path", p->search_path,
							 PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_SAVE, true, 0, false);
	es_projection_check_query(query);
	AtEOXact_GUC(false, guc_level);
	SetUserIdAndSecContext(user, security);
}

/*
 * es_alter_projection(name, mode, batch_size, partitions, on_error, query)
 *
 * Change what is not NULL of a projection; batch_size 0 goes back to
 * es.batch_size.  A new query applies from the next event on, es_rebuild()
 * brings what is there into its shape.  Errors: those of
 * es_create_projection(), 42704 where there is no such projection, 42501 for
 * those who are not the owner, 55000 where it cannot be now, and those of the
 * query, which is run here to bring partitions to one position, or to catch up
 * before the mode changes.
 */
Datum
es_alter_projection(PG_FUNCTION_ARGS)
{
	char	   *mode = word_argument(fcinfo, ARG_MODE, "mode", "async", "sync");
	Datum		name = PG_GETARG_DATUM(0);

	es_check_name("projection name", PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	check_arguments(fcinfo, mode);
	es_projection_lock(name);
	if (!PG_ARGISNULL(ARG_QUERY))
		es_rebuild_refuse_if_active(name, "the query");
	if (!PG_ARGISNULL(ARG_PARTITIONS))
		es_rebuild_refuse_if_active(name, "the number of partitions");
	if (mode && strcmp(mode, "async") == 0 && es_projection_is_sync(name))
		es_projection_make_async(name);
	if (!PG_ARGISNULL(ARG_PARTITIONS))
		split(name, PG_GETARG_INT32(ARG_PARTITIONS));
	if (!PG_ARGISNULL(ARG_QUERY))
		check_query(name, text_to_cstring(PG_GETARG_TEXT_PP(ARG_QUERY)));
	update(fcinfo);
	if (mode && strcmp(mode, "sync") == 0 && !es_projection_is_sync(name))
		es_projection_make_sync(name);
	es_projection_check_modes(name);
	es_projection_revise(name);
	PG_RETURN_VOID();
}
