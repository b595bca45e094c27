/*-------------------------------------------------------------------------
 * matching.c
 *	  Reading what matches a query, and appending if nothing further does:
 *	  es_read_matching(), es_lock_matching(), es_read_to(), es_append_if().
 *
 * The reading runs as the caller, so rights and row security hold.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "executor/spi.h"
#include "executor/tstoreReceiver.h"
#include "fmgr.h"
#include "funcapi.h"
#include "lib/stringinfo.h"
#include "miscadmin.h"
#include "store/append.h"
#include "store/condition.h"
#include "store/dedup.h"
#include "store/functions.h"
#include "store/query.h"
#include "store/read.h"
#include "store/streams.h"
#include "store/watermark.h"
#include "utils/array.h"
#include "utils/builtins.h"

PG_FUNCTION_INFO_V1(es_append_if);
PG_FUNCTION_INFO_V1(es_lock_matching);
PG_FUNCTION_INFO_V1(es_read_matching);
PG_FUNCTION_INFO_V1(es_read_to);

static EsResultType append_if_result = {
	3, {{"first_position", INT8OID}, {"last_position", INT8OID}, {"events_appended", INT8OID}}, NULL
};

/* How far this session's last es_read_matching() has read. */
static int64 read_to = 0;

/*
 * A statement under construction, with its parameters.
 */
typedef struct Statement
{
	StringInfoData sql;
	ParamListInfo params;
} Statement;

/*
 * Passes rows on and remembers the position of the last one.
 */
typedef struct Receiver
{
	DestReceiver pub;
	DestReceiver *inner;
	int64		last;
} Receiver;

static bool
receive(TupleTableSlot *slot, DestReceiver *self)
{
	Receiver   *r = (Receiver *) self;
	bool		isnull;

	r->last = DatumGetInt64(slot_getattr(slot, 1, &isnull));
	return r->inner->receiveSlot(slot, r->inner);
}

static void
start_receiving(DestReceiver *self, int operation, TupleDesc desc)
{
	DestReceiver *inner = ((Receiver *) self)->inner;

	inner->rStartup(inner, operation, desc);
}

static void
stop_receiving(DestReceiver *self)
{
	DestReceiver *inner = ((Receiver *) self)->inner;

	inner->rShutdown(inner);
}

static void
destroy_receiver(DestReceiver *self)
{
}

static void
add_param(Statement *statement, Oid type, Datum value)
{
	ParamExternData *param = &statement->params->params[statement->params->numParams++];

	param->value = value;
	param->isnull = false;
	param->pflags = PARAM_FLAG_CONST;
	param->ptype = type;
}

/*
 * Append "AND column is one of the item's types", if it has any.
 */
static void
add_types(Statement *statement, const EsQueryItem *item)
{
	Datum	   *types = palloc(sizeof(Datum) * Max(item->ntypes, 1));

	if (item->ntypes == 0)
		return;
	for (int i = 0; i < item->ntypes; i++)
		types[i] = PointerGetDatum(item->types[i]);
	add_param(statement, TEXTARRAYOID,
			  PointerGetDatum(construct_array(types, item->ntypes, TEXTOID, -1,
											  false, TYPALIGN_INT)));
	appendStringInfo(&statement->sql, " AND e.type OPERATOR(pg_catalog.=) ANY ($%d)",
					 statement->params->numParams);
}

/*
 * Append a query for the positions of the events that match an item.
 */
static void
add_item(Statement *statement, const EsQueryItem *item)
{
	StringInfo	sql = &statement->sql;

	appendStringInfoString(sql, "SELECT e.position FROM es.event e");
	for (int i = 0; i < item->ntags; i++)
	{
		add_param(statement, TEXTOID, PointerGetDatum(item->tags[i]));
		appendStringInfo(sql, " JOIN es.tag t%d ON t%d.tag OPERATOR(pg_catalog.=) $%d"
						 " AND t%d.position OPERATOR(pg_catalog.=) e.position"
						 " AND t%d.position OPERATOR(pg_catalog.>) $1"
						 " AND t%d.position OPERATOR(pg_catalog.<=) $2",
						 i, i, statement->params->numParams, i, i, i);
	}
	appendStringInfoString(sql, " WHERE e.position OPERATOR(pg_catalog.>) $1"
						   " AND e.position OPERATOR(pg_catalog.<=) $2");
	add_types(statement, item);
}

/*
 * The statement that reads at most max_count events in (after, to] that match.
 */
static void
build(Statement *statement, const EsQuery *query, int64 after, int64 to,
	  int64 max_count)
{
	int			nparams = 3;

	for (int i = 0; i < query->nitems; i++)
		nparams += query->items[i].ntags + 1;
	statement->params = makeParamList(nparams);
	statement->params->numParams = 0;
	add_param(statement, INT8OID, Int64GetDatum(after));
	add_param(statement, INT8OID, Int64GetDatum(to));
	add_param(statement, INT8OID, Int64GetDatum(max_count));

	initStringInfo(&statement->sql);
	appendStringInfoString(&statement->sql, ES_EVENT_COLUMNS
						   "WHERE position OPERATOR(pg_catalog.=) ANY (ARRAY(");
	for (int i = 0; i < query->nitems; i++)
	{
		if (i > 0)
			appendStringInfoString(&statement->sql, " UNION ");
		add_item(statement, &query->items[i]);
	}
	appendStringInfoString(&statement->sql,
						   " ORDER BY 1 LIMIT $3)) ORDER BY position");
}

/*
 * Read what matches into the result of a set returning function, with a new
 * snapshot.  Returns how far that has read: "to", or the last event's position
 * where there may be more.
 */
static int64
read_matching(FunctionCallInfo fcinfo, const EsQuery *query, int64 after,
			  int64 to, int64 max_count)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;
	SPIExecuteOptions options = {0};
	Statement	statement;
	Receiver	receiver = {.pub = {
			.receiveSlot = receive,
			.rStartup = start_receiving,
			.rShutdown = stop_receiving,
			.rDestroy = destroy_receiver,
			.mydest = DestTuplestore
	}};

	InitMaterializedSRF(fcinfo, MAT_SRF_BLESS);
	receiver.inner = CreateDestReceiver(DestTuplestore);
	SetTuplestoreDestReceiverParams(receiver.inner, rsinfo->setResult,
									rsinfo->econtext->ecxt_per_query_memory,
									false, NULL, NULL);
	build(&statement, query, after, to, max_count);
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	options.params = statement.params;
	options.must_return_tuples = true;
	options.dest = &receiver.pub;
	if (SPI_execute_extended(statement.sql.data, &options) < 0)
		elog(ERROR, "SPI_execute_extended failed");
	if (SPI_processed >= (uint64) max_count && max_count > 0)
		to = receiver.last;
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
	return max_count > 0 ? to : after;
}

static EsQuery *
query_argument(FunctionCallInfo fcinfo, int arg)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the query must not be null"),
				 errdetail("It is NULL."),
				 errhint("To read the whole log use es_read().")));
	return es_query_from_json(PG_GETARG_JSONB_P(arg));
}

static int64
after_argument(FunctionCallInfo fcinfo, int arg)
{
	if (PG_ARGISNULL(arg))
		return 0;
	if (PG_GETARG_INT64(arg) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("\"after\" must be a position, or 0 for the whole log"),
				 errdetail("It is " INT64_FORMAT ".", PG_GETARG_INT64(arg)),
				 errhint("Give what es_read_to() returned, or the position of an event.")));
	return PG_GETARG_INT64(arg);
}

/*
 * es_read_matching(query, after, max_count)
 *
 * At most max_count events (NULL: all) behind a position that match the query,
 * in the order of the log, up to the settled position; es_read_to() then tells
 * how far that was.  A decision made on them stands if es_append_if() finds
 * nothing behind that position, or behind the last event returned.  Errors:
 * 22023 and 22004 where the query is none.  The specification is dcb.events'.
 */
Datum
es_read_matching(PG_FUNCTION_ARGS)
{
	EsQuery    *query = query_argument(fcinfo, 0);
	int64		after = after_argument(fcinfo, 1);
	int64		max_count = es_count_argument(fcinfo, 2);
	int64		last;

	/* First the position, then the snapshot: see watermark.c. */
	last = read_matching(fcinfo, query, after, es_settled_position(), max_count);
	read_to = Max(after, last);
	return (Datum) 0;
}

/*
 * es_read_to(): how far the last es_read_matching() of this session has read;
 * what is behind it was not returned, what is not was.
 */
Datum
es_read_to(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(read_to);
}

/*
 * es_lock_matching(query, after, max_count)
 *
 * The same for a decision in this transaction: locks the query, so that until
 * the transaction ends nobody else appends an event that matches it, and reads
 * all that is committed.  Waits for who has appended one; errors with 40001 in
 * REPEATABLE READ and above where one was appended that the transaction's
 * snapshot does not see.
 */
Datum
es_lock_matching(PG_FUNCTION_ARGS)
{
	EsQuery    *query = query_argument(fcinfo, 0);
	int64		after = after_argument(fcinfo, 1);
	int64		max_count = es_count_argument(fcinfo, 2);
	EsTagLocks	locks = {0};

	es_check_can_lock("es_lock_matching()");
	es_condition_lock_event(query);
	es_condition_locks(query, &locks);
	es_tag_locks_take(&locks);
	es_condition_check_seen(query, after);
	(void) read_matching(fcinfo, query, after, PG_INT64_MAX, max_count);
	return (Datum) 0;
}

/*
 * Lock what an append under a condition needs: the log, then streams, then
 * tags, those of the events and those of the condition at once.
 */
static void
lock(EsEvent *events, int nevents, EsStreams *streams, const EsQuery *query)
{
	EsTagLocks	locks = {0};

	es_condition_lock_event(query);
	es_streams_open(streams);
	es_condition_locks(query, &locks);
	es_events_tag_locks(&locks, events, nevents);
	es_tag_locks_take(&locks);
}

/*
 * Append the events under the condition.
 */
static void
append_if(EsEvent *events, int nevents, text **names, const EsQuery *query,
		  int64 after, EsOutcome *outcome)
{
	EsStreams	streams;

	es_events_check(events, nevents);
	es_streams_of(&streams, names, nevents);
	lock(events, nevents, &streams, query);
	if (query)
		es_condition_check(query, after);
	for (int i = 0; i < nevents; i++)
		events[i].stream = es_streams_find(&streams, names[i]);
	outcome->position = es_stream_append(events[0].stream, events, nevents) + nevents - 1;
	outcome->version = events[0].stream->version;
	outcome->events = nevents;
}

/*
 * es_append_if(events, fail_if_match, after, command_id)
 *
 * Append events, each to the stream that it names, all or none, unless an
 * event that matches the query fail_if_match (NULL: none) stands behind the
 * position "after" (NULL: 0): ES004, with the event in the detail.  Waits for
 * whoever appends an event that matches.  Returns the first and the last of
 * the consecutive positions and the number of events; with a command_id that
 * was there before, those of then, whatever matches by now.  Other errors:
 * those of es_append_batch(), and 22023 where the query is none.  The
 * specification is the Dynamic Consistency Boundary's, dcb.events.
 */
Datum
es_append_if(PG_FUNCTION_ARGS)
{
	EsRequest	request = {0};
	EsOutcome	outcome = {0};
	EsEvent    *events;
	int			nevents;
	text	  **names;
	EsQuery    *query = PG_ARGISNULL(1) ? NULL : query_argument(fcinfo, 1);
	int64		after = after_argument(fcinfo, 2);
	int64		result[3];

	es_check_can_append("es_append_if()");
	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the events must not be null"),
				 errdetail("They are NULL."),
				 errhint("Give an array of at least one event.")));
	events = es_events_from_json(PG_GETARG_JSONB_P(0), &nevents, &names);

	request.id = es_command_id_argument(fcinfo, 3);
	request.name = "es_append_if";
	request.stream = names[0];
	if (request.id)
		request.fingerprint = es_fingerprint(PG_GETARG_JSONB_P(0), 0);
	if (!es_dedup_find(&request, &outcome))
	{
		append_if(events, nevents, names, query, after, &outcome);
		es_dedup_record(&request, &outcome);
	}
	result[0] = outcome.position - outcome.events + 1;
	result[1] = outcome.position;
	result[2] = outcome.events;
	return es_bigint_row(&append_if_result, result);
}
