/*-------------------------------------------------------------------------
 * channel.c
 *	  NOTIFY channels, each with the events it tells of: es_create_channel()
 *	  and es_drop_channel().
 *
 * The scheduler keeps the definitions, and reads them again when what the
 * workers go by has changed.  It alone writes es.channel_count, so that no
 * transaction that drops a channel and stays open can make it wait.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "fanout/channel.h"
#include "fanout/filter.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "store/identity.h"
#include "store/watermark.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"

PG_FUNCTION_INFO_V1(es_create_channel);
PG_FUNCTION_INFO_V1(es_drop_channel);

static EsStatement insert_channel = ES_SQL(
	"INSERT INTO es.channel (name, categories, types, owner) VALUES ($1, $2, $3, $4) "
	"ON CONFLICT DO NOTHING",
	4, TEXTOID, TEXTARRAYOID, TEXTARRAYOID, REGROLEOID);
static EsStatement owner_of_channel = ES_SQL(
	"SELECT owner FROM es.channel WHERE name = $1 FOR UPDATE", 1, TEXTOID);
static EsStatement delete_channel = ES_SQL(
	"DELETE FROM es.channel WHERE name = $1", 1, TEXTOID);
static EsStatement select_channels = ES_SQL(
	"SELECT name, categories, types FROM es.channel ORDER BY name", 0, InvalidOid);
static EsStatement forget_counts = ES_SQL(
	"DELETE FROM es.channel_count c WHERE NOT EXISTS "
	"  (SELECT FROM es.channel WHERE name = c.channel)", 0, InvalidOid);
/* What was counted before is that of another channel of the same name. */
#define IS_NEW \
	"EXISTS (SELECT FROM es.channel WHERE name = $1 AND created_at > c.notified_at)"

static EsStatement count_announcement = ES_SQL(
	"INSERT INTO es.channel_count AS c (channel, notifications, events, position, notified_at) "
	"VALUES ($1, 1, $2, $3, clock_timestamp()) "
	"ON CONFLICT (channel) DO UPDATE SET "
	"  notifications = 1 + CASE WHEN " IS_NEW " THEN 0 ELSE c.notifications END, "
	"  events = $2 + CASE WHEN " IS_NEW " THEN 0 ELSE c.events END, "
	"  position = excluded.position, notified_at = excluded.notified_at",
	3, TEXTOID, INT8OID, INT8OID);

/*
 * The channels as last read, by read_channels(), and as of when: of which
 * generation, and after how many changes of what the workers go by.
 */
static List *channels = NIL;
static MemoryContext channels_context = NULL;
static uint64 channels_generation = 0;
static uint64 channels_changes = 0;

/* Counts what happened to the table itself: the extension may be another. */
static uint64 generation = 1;

static void
forget(Datum arg, Oid relid)
{
	const EsCatalog *catalog = es_catalog_cached();

	if (relid == InvalidOid || catalog == NULL || relid == catalog->channel)
		generation++;
}

void
es_channel_init(void)
{
	CacheRegisterRelcacheCallback(forget, (Datum) 0);
}

/*
 * Refuse what LISTEN could not name.
 */
void
es_check_channel_name(const char *name)
{
	if (name[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("channel name must not be empty"),
				 errhint("Give a name of 1 to %d bytes.", NAMEDATALEN - 1)));
	if (strlen(name) >= NAMEDATALEN)
		ereport(ERROR,
				(errcode(ERRCODE_NAME_TOO_LONG),
				 errmsg("channel name is too long"),
				 errdetail("It has %d bytes; the limit is %d.",
						   (int) strlen(name), NAMEDATALEN - 1),
				 errhint("LISTEN takes an identifier, which is no longer than that.")));
	if (strcmp(name, ES_CHANNEL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_RESERVED_NAME),
				 errmsg("channel \"%s\" is built in", ES_CHANNEL),
				 errdetail("It tells of all events."),
				 errhint("Choose another name.")));
}

static char *
name_argument(FunctionCallInfo fcinfo)
{
	char	   *name;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("channel name must not be null")));
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	es_check_channel_name(name);
	return name;
}

/*
 * es_create_channel(name, categories, types)
 *
 * Let listeners of the channel be told of events of some categories and types
 * (NULL: all).  The name has 1 to 63 bytes.  Errors: 42710 where it exists,
 * 42939 for "es", 22023, 22004 and 42622 on bad arguments.
 */
Datum
es_create_channel(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo);
	Datum		values[4];
	char		nulls[] = "    ";
	uint64		n;
	EsSpi		spi;

	(void) es_database();
	es_check_filter(fcinfo, 1, 2);
	es_identity_establish();
	values[0] = CStringGetTextDatum(name);
	for (int i = 1; i <= 2; i++)
	{
		values[i] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i] = PG_ARGISNULL(i) ? 'n' : ' ';
	}
	values[3] = ObjectIdGetDatum(GetUserId());

	es_spi_begin(&spi);
	n = es_run(&insert_channel, values, nulls);
	es_spi_end(&spi);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_DUPLICATE_OBJECT),
				 errmsg("channel \"%s\" already exists", name),
				 errhint("Drop it first with es_drop_channel().")));
	es_wake_at_commit();
	PG_RETURN_VOID();
}

/*
 * es_drop_channel(name): listeners stay, and hear no more.
 */
Datum
es_drop_channel(PG_FUNCTION_ARGS)
{
	char	   *name = name_argument(fcinfo);
	Datum		key = CStringGetTextDatum(name);
	Oid			user = GetUserId();
	bool		isnull;
	EsSpi		spi;

	es_spi_begin(&spi);
	if (es_run(&owner_of_channel, &key, NULL) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("channel \"%s\" does not exist", name),
				 errhint("See es_channels for what there is.")));
	if (!has_privs_of_role(user, DatumGetObjectId(es_spi_value(0, 1, &isnull))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of channel \"%s\"", name)));
	(void) es_run(&delete_channel, &key, NULL);
	es_spi_end(&spi);
	es_wake_at_commit();
	PG_RETURN_VOID();
}

static ArrayType *
array_column(uint64 row, int column)
{
	bool		isnull;
	Datum		value = es_spi_value(row, column, &isnull);

	return isnull ? NULL : DatumGetArrayTypePCopy(value);
}

static EsChannel *
channel_from_row(uint64 row)
{
	EsChannel  *channel = palloc0(sizeof(EsChannel));

	channel->name = pstrdup(es_spi_text(row, 1));
	es_filter_from_arrays(&channel->filter, array_column(row, 2),
						  array_column(row, 3));
	channel->filtered = channel->filter.categories || channel->filter.types;
	return channel;
}

static void
read_channels(void)
{
	uint64		seen = generation;
	uint64		changes = es_changes();
	EsSpi		spi;
	uint64		n;

	if (channels_context == NULL)
		channels_context = AllocSetContextCreate(TopMemoryContext, "es channels",
												 ALLOCSET_SMALL_SIZES);
	channels = NIL;
	MemoryContextReset(channels_context);
	es_spi_begin(&spi);
	n = es_run(&select_channels, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		MemoryContext old = MemoryContextSwitchTo(channels_context);

		channels = lappend(channels, channel_from_row(i));
		MemoryContextSwitchTo(old);
	}
	(void) es_run(&forget_counts, NULL, NULL);
	es_spi_end(&spi);
	/* What changed while we read is read by the next call. */
	channels_generation = seen;
	channels_changes = changes;
}

/*
 * The channels there are, besides the built-in one.  For the scheduler; needs
 * a transaction.
 */
List *
es_channels(void)
{
	if (channels_generation != generation || channels_changes != es_changes())
		read_channels();
	return channels;
}

/*
 * Count what a channel was told, once.  Between es_spi_begin() and
 * es_spi_end().
 */
void
es_channel_announced(EsChannel *channel)
{
	Datum		values[3];

	if (channel->count == 0)
		return;
	values[0] = CStringGetTextDatum(channel->name);
	values[1] = Int64GetDatum(channel->count);
	values[2] = Int64GetDatum(channel->last);
	(void) es_run(&count_announcement, values, NULL);
	channel->count = 0;
}
