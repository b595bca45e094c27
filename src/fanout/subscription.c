/*-------------------------------------------------------------------------
 * subscription.c
 *	  Defining subscriptions: es_create_subscription() and
 *	  es_drop_subscription(); and es_retry_delivery().
 *
 * A subscription is what Kafka calls a consumer group: its place in the log is
 * kept here, and its consumers share its partitions (see lease.c).  Whoever
 * has the rights of its owner may consume it.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "fanout/filter.h"
#include "fanout/lease.h"
#include "fanout/subscription.h"
#include "miscadmin.h"
#include "store/append.h"
#include "store/identity.h"
#include "store/watermark.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/rls.h"

PG_FUNCTION_INFO_V1(es_create_subscription);
PG_FUNCTION_INFO_V1(es_drop_subscription);
PG_FUNCTION_INFO_V1(es_retry_delivery);

#define MAX_PARTITIONS	1024
#define MAX_DELIVERIES	1000000

/* The arguments of es_create_subscription(). */
enum
{
	ARG_NAME,
	ARG_CATEGORIES,
	ARG_TYPES,
	ARG_PARTITIONS,
	ARG_START_AFTER,
	ARG_MAX_DELIVERIES,
	ARGS
};

static EsStatement insert_subscription = ES_SQL(
	"WITH s AS (INSERT INTO es.subscription (name, categories, types, partitions, "
	"  start_after, max_deliveries, owner) VALUES ($1, $2, $3, $4, $5, $6, $7) "
	" ON CONFLICT DO NOTHING RETURNING name, partitions, start_after) "
	"INSERT INTO es.subscription_partition (subscription, partition, position, delivered, handed_out) "
	"SELECT name, i, start_after, start_after, start_after FROM s, generate_series(0, partitions - 1) i",
	7, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, INT4OID, INT8OID, INT4OID, REGROLEOID);
static EsStatement select_subscription = ES_SQL(
	"SELECT owner, partitions, max_deliveries, categories, types "
	"FROM es.subscription WHERE name = $1", 1, TEXTOID);
static EsStatement delete_subscription = ES_SQL(
	"WITH p AS (DELETE FROM es.subscription_partition WHERE subscription = $1), "
	"  l AS (DELETE FROM es.subscription_dead_letter WHERE subscription = $1) "
	"DELETE FROM es.subscription WHERE name = $1", 1, TEXTOID);
static EsStatement find_letter = ES_SQL(
	"SELECT d.stream, d.partition, d.status, "
	"  (SELECT min(position) FROM es.subscription_dead_letter f "
	"   WHERE f.subscription = $1 AND f.stream = d.stream AND f.status = 'parked') "
	"FROM es.subscription_dead_letter d WHERE d.subscription = $1 AND d.position = $2",
	2, TEXTOID, INT8OID);
static EsStatement lock_partition = ES_SQL(
	"SELECT position FROM es.subscription_partition "
	"WHERE subscription = $1 AND partition = $2 FOR UPDATE", 2, TEXTOID, INT4OID);
/* What the consumer has not come to yet, it will get in its turn. */
static EsStatement retry_letters = ES_SQL(
	"WITH ahead AS (DELETE FROM es.subscription_dead_letter "
	"  WHERE subscription = $1 AND stream = $2 AND position > $3 RETURNING position), "
	" here AS (UPDATE es.subscription_dead_letter SET status = 'retry', deliveries = 0 "
	"  WHERE subscription = $1 AND stream = $2 AND position <= $3 "
	"    AND status IN ('parked', 'behind') RETURNING position) "
	"SELECT count(*)::int FROM (TABLE ahead UNION ALL TABLE here) r",
	3, TEXTOID, TEXTOID, INT8OID);

text *
es_name_argument(FunctionCallInfo fcinfo, int arg, const char *what)
{
	text	   *name = PG_ARGISNULL(arg) ? NULL : PG_GETARG_TEXT_PP(arg);

	es_check_name(what, name);
	return name;
}

int64
es_position_argument(FunctionCallInfo fcinfo, int arg)
{
	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("position must not be null"),
				 errhint("Give the position of an event, as es_fetch() returned it.")));
	return PG_GETARG_INT64(arg);
}

/*
 * A time in milliseconds, within limits; a month counts as 30 days.
 */
int64
es_interval_argument(FunctionCallInfo fcinfo, int arg, const char *what,
					 int64 min_ms, int64 max_ms)
{
	Interval   *interval;
	double		ms;

	if (PG_ARGISNULL(arg))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("%s must not be null", what)));
	interval = PG_GETARG_INTERVAL_P(arg);
	ms = ((double) interval->month * DAYS_PER_MONTH + interval->day) * ES_DAY_MS +
		interval->time / 1000.0;
	if (ms < min_ms || ms > max_ms)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s is out of range", what),
				 errdetail("It must be " INT64_FORMAT " ms at least and " INT64_FORMAT " ms (a day) at most.",
						   min_ms, max_ms)));
	return (int64) ms;
}

static int
int_argument(FunctionCallInfo fcinfo, int arg, const char *what, int max)
{
	if (PG_ARGISNULL(arg) || PG_GETARG_INT32(arg) < 1 || PG_GETARG_INT32(arg) > max)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("%s must be between 1 and %d", what, max)));
	return PG_GETARG_INT32(arg);
}

/*
 * Consumers get events without a look at the rights on es.event, so the caller
 * must have them all.
 */
static void
check_may_read(void)
{
	Oid			event = es_catalog()->event;

	if (pg_class_aclcheck(event, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, get_rel_name(event));
	if (check_enable_rls(event, InvalidOid, true) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" may not consume a subscription",
						GetUserNameFromId(GetUserId(), false)),
				 errdetail("Row-level security hides events from it, and a subscription hides none."),
				 errhint("Use es_read(), which goes by the policies of es.event.")));
}

static void
subscription_missing(text *name)
{
	ereport(ERROR,
			(errcode(ERRCODE_UNDEFINED_OBJECT),
			 errmsg("subscription \"%s\" does not exist", text_to_cstring(name)),
			 errhint("See es_subscriptions for what there is.")));
}

static ArrayType *
array_column(uint64 row, int column)
{
	bool		isnull;
	Datum		value = es_spi_value(row, column, &isnull);

	return isnull ? NULL : DatumGetArrayTypePCopy(value);
}

/*
 * Read the definition of a subscription, which the caller must be allowed to
 * consume, into the current memory context.
 */
void
es_subscription_load(EsSubscription *subscription, text *name)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	Datum		key = PointerGetDatum(name);
	Oid			user = GetUserId();
	bool		isnull;
	EsSpi		spi;

	check_may_read();
	es_spi_begin(&spi);
	if (es_run(&select_subscription, &key, NULL) == 0)
		subscription_missing(name);
	if (!has_privs_of_role(user, DatumGetObjectId(es_spi_value(0, 1, &isnull))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of subscription \"%s\"", text_to_cstring(name))));
	old = MemoryContextSwitchTo(context);
	subscription->name = name;
	subscription->partitions = DatumGetInt32(es_spi_value(0, 2, &isnull));
	subscription->max_deliveries = DatumGetInt32(es_spi_value(0, 3, &isnull));
	es_filter_from_arrays(&subscription->filter, array_column(0, 4), array_column(0, 5));
	subscription->filtered = subscription->filter.categories || subscription->filter.types;
	MemoryContextSwitchTo(old);
	es_spi_end(&spi);
}

static void
check_definition(FunctionCallInfo fcinfo)
{
	(void) es_name_argument(fcinfo, ARG_NAME, "subscription name");
	(void) int_argument(fcinfo, ARG_PARTITIONS, "the number of partitions", MAX_PARTITIONS);
	(void) int_argument(fcinfo, ARG_MAX_DELIVERIES, "max_deliveries", MAX_DELIVERIES);
	if (PG_ARGISNULL(ARG_START_AFTER) || PG_GETARG_INT64(ARG_START_AFTER) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("start_after must be a position, or 0 for the whole log")));
	check_may_read();
	es_check_filter(fcinfo, ARG_CATEGORIES, ARG_TYPES);
}

/*
 * es_create_subscription(name, categories, types, partitions, start_after,
 *						  max_deliveries)
 *
 * Keep a place in the log for consumers of the events of some categories and
 * types (NULL: all) behind a position.  Streams are split among 1 to 1024
 * partitions by the hash of their names.  Errors: 42710 where it exists,
 * 22023, 22004 and 42622 on bad arguments, 42501 for who may not read
 * es.event.  The idea is Kafka's consumer group.
 */
Datum
es_create_subscription(PG_FUNCTION_ARGS)
{
	Datum		values[ARGS + 1];
	char		nulls[] = "       ";
	uint64		n;
	EsSpi		spi;

	(void) es_database();
	check_definition(fcinfo);
	es_identity_establish();
	for (int i = 0; i < ARGS; i++)
	{
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	values[ARGS] = ObjectIdGetDatum(GetUserId());

	es_spi_begin(&spi);
	n = es_run(&insert_subscription, values, nulls);
	es_spi_end(&spi);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("subscription \"%s\" already exists",
						TextDatumGetCString(values[ARG_NAME])),
				 errhint("Drop it first with es_drop_subscription().")));
	PG_RETURN_VOID();
}

/*
 * es_drop_subscription(name): its consumers get an error from then on.
 */
Datum
es_drop_subscription(PG_FUNCTION_ARGS)
{
	text	   *name = es_name_argument(fcinfo, 0, "subscription name");
	Datum		key = PointerGetDatum(name);
	EsSubscription subscription = {0};
	EsSpi		spi;

	es_subscription_load(&subscription, name);
	es_spi_begin(&spi);
	(void) es_run(&delete_subscription, &key, NULL);
	es_spi_end(&spi);
	es_wake_consumers_at_commit();
	PG_RETURN_VOID();
}

/*
 * Refuse to retry what is not the first parked event of its stream.  SPI holds
 * the row of find_letter.
 */
static void
check_first_parked(uint64 found, text *name, int64 position)
{
	bool		isnull;
	int64		first;

	if (found == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("subscription \"%s\" has no parked event at position " INT64_FORMAT,
						text_to_cstring(name), position),
				 errhint("See es_dead_deliveries for what there is.")));
	first = DatumGetInt64(es_spi_value(0, 4, &isnull));
	if (isnull || first == position)
		return;
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("the event at position " INT64_FORMAT " waits behind another one of its stream",
					position),
			 errdetail("Position " INT64_FORMAT " comes first.", first),
			 errhint("Retry that one; those behind it follow.")));
}

/*
 * es_retry_delivery(subscription, position)
 *
 * Hand a parked event out again, and then those of its stream behind it, in
 * their order.  Returns how many they are.  Errors: 42704 where it is not
 * parked, 55000 where another one of its stream comes first.
 */
Datum
es_retry_delivery(PG_FUNCTION_ARGS)
{
	text	   *name = es_name_argument(fcinfo, 0, "subscription name");
	int64		position = es_position_argument(fcinfo, 1);
	EsSubscription subscription = {0};
	Datum		values[3];
	bool		isnull;
	int			n;
	text	   *stream;
	EsSpi		spi;

	es_subscription_load(&subscription, name);
	es_spi_begin(&spi);
	values[0] = PointerGetDatum(name);
	values[1] = Int64GetDatum(position);
	check_first_parked(es_run(&find_letter, values, NULL), name, position);
	stream = DatumGetTextPCopy(es_spi_value(0, 1, &isnull));
	values[1] = es_spi_value(0, 2, &isnull);
	/* Nobody moves the partition's position meanwhile. */
	(void) es_run(&lock_partition, values, NULL);
	values[1] = PointerGetDatum(stream);
	values[2] = es_spi_value(0, 1, &isnull);
	(void) es_run(&retry_letters, values, NULL);
	n = DatumGetInt32(es_spi_value(0, 1, &isnull));
	es_spi_end(&spi);
	es_wake_consumers_at_commit();
	PG_RETURN_INT32(n);
}
