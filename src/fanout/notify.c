/*-------------------------------------------------------------------------
 * notify.c
 *	  Announcing news with NOTIFY.
 *
 * PostgreSQL takes one lock of the whole cluster for the commit of a
 * transaction that notifies.  So no appending transaction does; the scheduler
 * notifies for all that has settled since it did last, one message for each
 * channel that is concerned.
 *
 * A listener that sleeps in a transaction lets PostgreSQL's queue of messages
 * grow until it is full, and then it is the notifying commit that fails.  That
 * is the scheduler's, which counts the failure; the next announcement covers
 * what this one did not.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "commands/async.h"
#include "es.h"
#include "fanout/channel.h"
#include "fanout/notify.h"
#include "fmgr.h"
#include "store/identity.h"
#include "store/scan.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(es_notify_failures);

static EsStatement select_announced = ES_SQL(
	"SELECT position, failures FROM es.announced", 0, InvalidOid);
static EsStatement record_announced = ES_SQL(
	"INSERT INTO es.announced AS a (position, notifications, notified_at) "
	"VALUES ($1, 1, clock_timestamp()) "
	"ON CONFLICT (one) DO UPDATE SET position = excluded.position, "
	"  notifications = a.notifications + 1, notified_at = excluded.notified_at, failing_since = NULL "
	"RETURNING ctid",
	1, INT8OID);
static EsStatement record_announced_at = ES_SQL(
	"UPDATE es.announced SET position = $1, notifications = notifications + 1, "
	"  notified_at = clock_timestamp(), failing_since = NULL WHERE ctid = $2 RETURNING ctid",
	2, INT8OID, TIDOID);
static EsStatement end_failure = ES_SQL(
	"UPDATE es.announced SET failing_since = NULL WHERE failing_since IS NOT NULL",
	0, InvalidOid);
static EsStatement count_failure = ES_SQL(
	"INSERT INTO es.announced AS a (position, failures, failed_at, failing_since, error) "
	"VALUES (0, 1, clock_timestamp(), clock_timestamp(), $1) "
	"ON CONFLICT (one) DO UPDATE SET failures = a.failures + 1, "
	"  failed_at = excluded.failed_at, error = excluded.error, "
	"  failing_since = coalesce(a.failing_since, excluded.failing_since)",
	1, TEXTOID);

/*
 * A number of the one row of es.announced; 0 where nothing was announced yet.
 */
static int64
announced_column(int column)
{
	int64		value = 0;
	bool		isnull;
	EsSpi		spi;

	es_spi_begin(&spi);
	if (es_run(&select_announced, NULL, NULL) > 0)
		value = DatumGetInt64(es_spi_value(0, column, &isnull));
	es_spi_end(&spi);
	return value;
}

/*
 * The settled position that was announced last.  Needs a transaction.
 */
int64
es_announced_position(void)
{
	return announced_column(1);
}

/*
 * es.notify_failures(): how often an announcement failed and was made up for
 * later, since the extension was created.
 */
Datum
es_notify_failures(PG_FUNCTION_ARGS)
{
	PG_RETURN_INT64(announced_column(2));
}

/*
 * Count, for every channel, its events behind "after" up to "settled".
 */
static void
count_news(List *channels, int64 after, int64 settled)
{
	EsEventScan scan;
	TupleTableSlot *event;
	ListCell   *cell;

	foreach(cell, channels)
		((EsChannel *) lfirst(cell))->count = 0;

	PushActiveSnapshot(GetTransactionSnapshot());
	es_event_scan_begin(&scan, NULL, after, settled);
	while ((event = es_event_scan_next(&scan)) != NULL)
	{
		foreach(cell, channels)
		{
			EsChannel  *channel = (EsChannel *) lfirst(cell);

			if (channel->filtered && !es_filter_passes(&channel->filter, event))
				continue;
			if (channel->count++ == 0)
				channel->first = scan.last;
			channel->last = scan.last;
		}
	}
	es_event_scan_end(&scan);
	PopActiveSnapshot();
}

static void
announce_on(const EsChannel *channel)
{
	if (channel->count == 0)
		return;
	Async_Notify(channel->name,
				 psprintf("{\"epoch\":\"%s\",\"from\":" INT64_FORMAT
						  ",\"position\":" INT64_FORMAT ",\"count\":" INT64_FORMAT "}",
						  es_epoch_text(), channel->first, channel->last,
						  channel->count));
}

/*
 * Tell the listeners, when the current transaction commits, what has settled
 * behind "after" up to "settled": those of channel "es" how far the log is,
 * and those of each other channel which of the events are theirs.
 */
void
es_announce(int64 after, int64 settled)
{
	List	   *channels = es_channels();
	ListCell   *cell;

	if (channels != NIL)
		count_news(channels, after, settled);
	foreach(cell, channels)
		announce_on((EsChannel *) lfirst(cell));
	Async_Notify(ES_CHANNEL, psprintf("{\"epoch\":\"%s\",\"position\":" INT64_FORMAT "}",
									  es_epoch_text(), settled));
}

/*
 * Write down what es_announce() has told, in a transaction that comes after
 * its own: listeners need not wait for that.  Who dies in between tells them
 * again.
 */
void
es_announced_record(int64 settled)
{
	static ItemPointerData row;
	Datum		values[2] = {Int64GetDatum(settled)};
	ListCell   *cell;
	EsSpi		spi;

	es_spi_begin(&spi);
	(void) es_run_at(&row, &record_announced_at, &record_announced, values);
	foreach(cell, es_channels())
		es_channel_announced((EsChannel *) lfirst(cell));
	es_spi_end(&spi);
}

/*
 * Announcing does not fail any more, though there was no position to announce.
 */
void
es_announce_mended(void)
{
	EsSpi		spi;

	es_spi_begin(&spi);
	(void) es_run(&end_failure, NULL, NULL);
	es_spi_end(&spi);
}

/*
 * Count an announcement that failed.  Needs a transaction of its own.
 */
void
es_announce_failed(const ErrorData *error)
{
	Datum		value = CStringGetTextDatum(error->message);
	EsSpi		spi;

	es_spi_begin(&spi);
	(void) es_run(&count_failure, &value, NULL);
	es_spi_end(&spi);
}
