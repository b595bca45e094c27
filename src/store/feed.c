/*-------------------------------------------------------------------------
 * feed.c
 *	  Whether a subscription brings the log its rows.
 *
 * Logical replication applies the publisher's transactions as they commit,
 * which is not the order of positions, and nothing here knows which are still
 * to come: what our counter and our slots say means nothing.  But the row of
 * es.settled comes in the same order, so that it covers what it says it does,
 * from when both tables have been copied and follow the one apply worker.
 *
 * A log that was appended to in this database takes no rows from anybody (see
 * guard.c), so that no subscription feeds it.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog.h"
#include "catalog/pg_subscription_rel.h"
#include "es.h"
#include "store/feed.h"
#include "store/identity.h"
#include "utils/catcache.h"
#include "utils/inval.h"
#include "utils/syscache.h"

/* Valid for the log that it was asked for, until something changes. */
static Oid	known_for = InvalidOid;
static EsFeed known;

/* Since when somebody last asked; see es_feed_may_have_ended(). */
static bool may_have_ended = true;

/*
 * What was known may be so no longer.
 */
void
es_feed_forget(void)
{
	known_for = InvalidOid;
	may_have_ended = true;
}

static void
subscription_changed(Datum arg, int cacheid, uint32 hashvalue)
{
	es_feed_forget();
}

/*
 * The log itself was changed, or an identity was written (see identity.c).
 */
static void
log_changed(Datum arg, Oid relid)
{
	if (relid == InvalidOid || relid == known_for)
		es_feed_forget();
}

void
es_feed_init(void)
{
	CacheRegisterSyscacheCallback(SUBSCRIPTIONRELMAP, subscription_changed, (Datum) 0);
	CacheRegisterRelcacheCallback(log_changed, (Datum) 0);
}

/*
 * How far the subscriptions of a table are, of all of them the one that is
 * least so.
 */
static EsFeed
feed_of(Oid relid)
{
	CatCList   *list = SearchSysCacheList1(SUBSCRIPTIONRELMAP, ObjectIdGetDatum(relid));
	EsFeed		feed = list->n_members > 0 ? ES_FEED_READY : ES_FEED_NONE;

	for (int i = 0; i < list->n_members; i++)
	{
		HeapTuple	tuple = &list->members[i]->tuple;

		if (((Form_pg_subscription_rel) GETSTRUCT(tuple))->srsubstate != SUBREL_STATE_READY)
			feed = ES_FEED_SYNCING;
	}
	ReleaseSysCacheList(list);
	return feed;
}

/*
 * Whether a subscription brings this log its rows.  Needs a transaction.
 */
EsFeed
es_feed(void)
{
	const EsCatalog *catalog = es_catalog();
	EsFeed		feed;

	if (known_for == catalog->event)
		return known;
	/* The callbacks may fire while we look; then the next call looks again. */
	known_for = catalog->event;
	feed = feed_of(catalog->event);
	if (feed == ES_FEED_READY && feed_of(catalog->settled) != ES_FEED_READY)
		feed = ES_FEED_SYNCING;
	if (feed != ES_FEED_NONE && es_identity_is_mine())
		feed = ES_FEED_NONE;
	known = feed;
	return feed;
}

/*
 * Whether, for all that this session knows, a feed may have ended since it was
 * last asked this: then positions have been used that the counter has not seen.
 */
bool
es_feed_may_have_ended(void)
{
	bool		may = may_have_ended;

	may_have_ended = false;
	return may;
}
