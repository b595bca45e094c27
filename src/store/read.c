/*-------------------------------------------------------------------------
 * read.c
 *	  Reading the log: es_read(), es_stream(), es_settled(), and what es_batch
 *	  goes by.
 *
 * The queries run as the caller, so rights and row security on es.event hold.
 * es_read() is volatile: it computes the settled position first and lets its
 * query take a snapshot after that (see watermark.c).
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "catalog.h"
#include "common/hashfn.h"
#include "es.h"
#include "executor/spi.h"
#include "executor/tstoreReceiver.h"
#include "fmgr.h"
#include "funcapi.h"
#include "guc.h"
#include "store/append.h"
#include "store/partition.h"
#include "store/read.h"
#include "store/watermark.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(es_read);
PG_FUNCTION_INFO_V1(es_stream);
PG_FUNCTION_INFO_V1(es_settled);
PG_FUNCTION_INFO_V1(es_batch_after);
PG_FUNCTION_INFO_V1(es_batch_to);
PG_FUNCTION_INFO_V1(es_batch_has);
PG_FUNCTION_INFO_V1(es_stream_partition);

/*
 * One statement for each combination of filters: each gets the plan that its
 * index serves, with no test for NULL in the way of it.
 */
static EsStatement read_all = ES_SQL(
	ES_EVENT_COLUMNS "WHERE position OPERATOR(pg_catalog.>) $1 AND position OPERATOR(pg_catalog.<=) $2 "
	"ORDER BY position LIMIT $3",
	5, INT8OID, INT8OID, INT8OID, TEXTOID, TEXTARRAYOID);
static EsStatement read_category = ES_SQL(
	ES_EVENT_COLUMNS "WHERE position OPERATOR(pg_catalog.>) $1 AND position OPERATOR(pg_catalog.<=) $2 "
	"AND category OPERATOR(pg_catalog.=) $4 ORDER BY category, position LIMIT $3",
	5, INT8OID, INT8OID, INT8OID, TEXTOID, TEXTARRAYOID);
static EsStatement read_types = ES_SQL(
	ES_EVENT_COLUMNS "WHERE position OPERATOR(pg_catalog.>) $1 AND position OPERATOR(pg_catalog.<=) $2 "
	"AND type OPERATOR(pg_catalog.=) ANY ($5) ORDER BY position LIMIT $3",
	5, INT8OID, INT8OID, INT8OID, TEXTOID, TEXTARRAYOID);
static EsStatement read_category_types = ES_SQL(
	ES_EVENT_COLUMNS "WHERE position OPERATOR(pg_catalog.>) $1 AND position OPERATOR(pg_catalog.<=) $2 "
	"AND category OPERATOR(pg_catalog.=) $4 AND type OPERATOR(pg_catalog.=) ANY ($5) "
	"ORDER BY category, position LIMIT $3",
	5, INT8OID, INT8OID, INT8OID, TEXTOID, TEXTARRAYOID);
static EsStatement read_stream = ES_SQL(
	ES_EVENT_COLUMNS "WHERE stream OPERATOR(pg_catalog.=) $1 AND version OPERATOR(pg_catalog.>=) $2 "
	"ORDER BY stream, version LIMIT $3",
	3, TEXTOID, INT8OID, INT8OID);

/* Ranges that are longer are not counted on the way: it would take 8 MB. */
#define MAX_SEEN	(INT64CONST(1) << 26)

/* The filter of es_batch, and where to count; es_batch_show() changes them. */
static const EsFilter *batch_filter = NULL;
static EsBatchSeen *batch_seen = NULL;

/*
 * Run a statement as the caller and send its rows into the result of a set
 * returning function.
 */
static void
read_into_result(FunctionCallInfo fcinfo, EsStatement *statement,
				 Datum *values, const char *nulls, bool read_only)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SPIExecuteOptions options = {0};

	InitMaterializedSRF(fcinfo, MAT_SRF_BLESS);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	es_prepare(statement);
	options.read_only = read_only;
	options.must_return_tuples = true;
	options.params = es_params(statement, values, nulls);
	options.dest = CreateDestReceiver(DestTuplestore);
	SetTuplestoreDestReceiverParams(options.dest, rsinfo->setResult,
									rsinfo->econtext->ecxt_per_query_memory,
									false, NULL, NULL);
	if (SPI_execute_plan_extended(statement->plan, &options) < 0)
		elog(ERROR, "SPI_execute_plan_extended failed");
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/*
 * A count as SQL gives it: NULL is "all", and a negative one an error.
 */
int64
es_count_argument(FunctionCallInfo fcinfo, int arg)
{
	if (PG_ARGISNULL(arg))
		return PG_INT64_MAX;
	if (PG_GETARG_INT32(arg) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_count must not be negative"),
				 errdetail("It is %d.", PG_GETARG_INT32(arg)),
				 errhint("Give NULL to read all.")));
	return PG_GETARG_INT32(arg);
}

/*
 * es_read(after, max_count, category, types)
 *
 * At most max_count events (NULL: all) behind a position, in the order of the
 * log, up to the settled position; with only those of a category or of some
 * types where these are given.  Whoever remembers the last position it got and
 * goes on from there gets every event once.
 */
Datum
es_read(PG_FUNCTION_ARGS)
{
	Datum		values[5];
	char		nulls[] = "     ";
	EsStatement *statement;

	values[0] = Int64GetDatum(PG_ARGISNULL(0) ? 0 : PG_GETARG_INT64(0));
	values[1] = Int64GetDatum(es_settled_position());
	values[2] = Int64GetDatum(es_count_argument(fcinfo, 1));
	values[3] = PG_ARGISNULL(2) ? (Datum) 0 : PG_GETARG_DATUM(2);
	values[4] = PG_ARGISNULL(3) ? (Datum) 0 : PG_GETARG_DATUM(3);
	if (PG_ARGISNULL(2))
		nulls[3] = 'n';
	if (PG_ARGISNULL(3))
		nulls[4] = 'n';

	if (PG_ARGISNULL(2))
		statement = PG_ARGISNULL(3) ? &read_all : &read_types;
	else
		statement = PG_ARGISNULL(3) ? &read_category : &read_category_types;
	read_into_result(fcinfo, statement, values, nulls, false);
	return (Datum) 0;
}

/*
 * es_stream(stream, from_version, max_count)
 *
 * The events of one stream from a version on, at most max_count (NULL: all).
 * A stream needs no settled position: its lock keeps its versions in order.
 */
Datum
es_stream(PG_FUNCTION_ARGS)
{
	Datum		values[3];

	es_check_name("stream name", PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	values[0] = PG_GETARG_DATUM(0);
	values[1] = Int64GetDatum(PG_ARGISNULL(1) ? 1 : PG_GETARG_INT64(1));
	values[2] = Int64GetDatum(es_count_argument(fcinfo, 2));
	read_into_result(fcinfo, &read_stream, values, NULL, true);
	return (Datum) 0;
}

/*
 * es_settled(): the highest position such that no event at or below it can
 * still appear.  Valid for snapshots taken afterwards.
 */
Datum
es_settled(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(es_settled_position());
}

/*
 * The texts of an array, which may be NULL; the filter points into it.
 */
static text **
texts_of(ArrayType *array, int *n)
{
	Datum	   *values;
	text	  **texts;

	*n = 0;
	if (array == NULL)
		return NULL;
	deconstruct_array(array, TEXTOID, -1, false, TYPALIGN_INT, &values, NULL, n);
	texts = palloc(sizeof(text *) * Max(*n, 1));
	for (int i = 0; i < *n; i++)
		texts[i] = DatumGetTextPP(values[i]);
	return texts;
}

/*
 * Make a filter in the current memory context.
 */
void
es_filter_from_arrays(EsFilter *filter, ArrayType *categories, ArrayType *types)
{
	filter->categories = texts_of(categories, &filter->ncategories);
	filter->types = texts_of(types, &filter->ntypes);
}

/*
 * Let es_batch show a part of the log; returns what it has shown, to be put
 * back.  The filter must outlive its use here.
 */
EsBatchView
es_batch_show(EsBatchView view)
{
	EsBatchView old = {batch_filter, es_batch_range_after, es_batch_range_to, batch_seen};

	batch_filter = view.filter;
	batch_seen = view.seen;
	es_batch_range_after = view.after;
	es_batch_range_to = view.to;
	return old;
}

Datum
es_batch_after(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(es_batch_range_after);
}

Datum
es_batch_to(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(es_batch_range_to);
}

static bool
is_among(const text *value, text **list, int n)
{
	int			len = VARSIZE_ANY_EXHDR(value);

	for (int i = 0; i < n; i++)
		if (VARSIZE_ANY_EXHDR(list[i]) == len &&
			memcmp(VARDATA_ANY(list[i]), VARDATA_ANY(value), len) == 0)
			return true;
	return false;
}

/* es.stream_partition(stream, partitions) */
Datum
es_stream_partition(PG_FUNCTION_ARGS)
{
	int			partitions = PG_GETARG_INT32(1);

	if (partitions < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("partitions must be at least 1"),
				 errdetail("It is %d.", partitions)));
	PG_RETURN_INT32(es_partition_of(PG_GETARG_TEXT_PP(0), partitions));
}

static int
compare_names(const void *a, const void *b)
{
	const text *x = *(text *const *) a;
	const text *y = *(text *const *) b;
	int			xlen = VARSIZE_ANY_EXHDR(x);
	int			ylen = VARSIZE_ANY_EXHDR(y);
	int			order = memcmp(VARDATA_ANY(x), VARDATA_ANY(y), Min(xlen, ylen));

	return order != 0 ? order : (xlen > ylen) - (xlen < ylen);
}

static int
compare_positions(const void *a, const void *b)
{
	int64		x = *(const int64 *) a;
	int64		y = *(const int64 *) b;

	return (x > y) - (x < y);
}

/*
 * Let a filter hold back streams, given as an array or NULL.
 */
void
es_filter_set_parked(EsFilter *filter, ArrayType *streams)
{
	filter->parked = texts_of(streams, &filter->nparked);
	qsort(filter->parked, filter->nparked, sizeof(text *), compare_names);
}

bool
es_filter_is_parked(const EsFilter *filter, const text *stream)
{
	return filter->nparked > 0 &&
		bsearch(&stream, filter->parked, filter->nparked, sizeof(text *),
				compare_names) != NULL;
}

static bool
is_skipped(const EsFilter *filter, int64 position)
{
	return filter->nskipped > 0 &&
		bsearch(&position, filter->skipped, filter->nskipped, sizeof(int64),
				compare_positions) != NULL;
}

/*
 * Whether an event is one that a filter is about, be it parked or not.
 */
bool
es_filter_takes(const EsFilter *filter, int64 position, const text *stream,
				const text *category, const text *type)
{
	if (filter->categories &&
		!is_among(category, filter->categories, filter->ncategories))
		return false;
	if (filter->types && !is_among(type, filter->types, filter->ntypes))
		return false;
	if (filter->partitions > 1 &&
		es_partition_of(stream, filter->partitions) != filter->partition)
		return false;
	if (filter->stream && compare_names(&filter->stream, &stream) != 0)
		return false;
	return !is_skipped(filter, position);
}

/*
 * Whether a row of es.event passes a filter.
 */
bool
es_filter_passes(const EsFilter *filter, TupleTableSlot *event)
{
	bool		isnull;
	text	   *stream;

	slot_getsomeattrs(event, 6);
	stream = DatumGetTextPP(slot_getattr(event, 4, &isnull));
	return es_filter_takes(filter, DatumGetInt64(slot_getattr(event, 1, &isnull)),
						   stream,
						   DatumGetTextPP(slot_getattr(event, 5, &isnull)),
						   DatumGetTextPP(slot_getattr(event, 6, &isnull))) &&
		!es_filter_is_parked(filter, stream);
}

/*
 * Begin to count the events of a range, in the current memory context.
 */
void
es_batch_seen_begin(EsBatchSeen *seen, int64 after, int64 to)
{
	memset(seen, 0, sizeof(*seen));
	seen->after = after;
	seen->npositions = to - after;
	/* A member behind all makes the set as large as it will be. */
	if (seen->npositions < MAX_SEEN)
		seen->looked_at = bms_make_singleton((int) seen->npositions);
}

/*
 * Count an event, once however often the query comes by.
 */
static void
note_seen(EsBatchSeen *seen, int64 position, bool passes)
{
	int64		i = position - seen->after - 1;

	if (seen->looked_at == NULL || i < 0 || i >= seen->npositions ||
		bms_is_member((int) i, seen->looked_at))
		return;
	seen->looked_at = bms_add_member(seen->looked_at, (int) i);
	seen->nlooked_at++;
	seen->nevents += passes ? 1 : 0;
}

/*
 * es.batch_has(position, stream, category, type): whether the filter of the
 * projection being applied lets such an event through.
 */
Datum
es_batch_has(PG_FUNCTION_ARGS)
{
	bool		passes = true;

	if (batch_filter != NULL)
	{
		text	   *stream = PG_GETARG_TEXT_PP(1);

		passes = es_filter_takes(batch_filter, PG_GETARG_INT64(0), stream,
								 PG_GETARG_TEXT_PP(2), PG_GETARG_TEXT_PP(3)) &&
			!es_filter_is_parked(batch_filter, stream);
	}
	if (batch_seen != NULL)
		note_seen(batch_seen, PG_GETARG_INT64(0), passes);
	PG_RETURN_BOOL(passes);
}
