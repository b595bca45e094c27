/*-------------------------------------------------------------------------
 * lease.c
 *	  Who holds which partitions of a subscription.
 *
 * A partition is held by one consumer at a time, until its lease ends.  There
 * is no coordinator: every consumer that fetches computes from the same facts
 * what its share is.  Of n partitions and m active consumers, sorted by a hash
 * of their names, the first n % m get one more than the others.  Whoever has
 * less than its share takes partitions that nobody holds, those whose lease
 * has ended, and idle ones of consumers that have more than theirs.  Whoever
 * has more gives back what is too much when it fetches.  A partition is idle
 * when all that was handed out from it is acknowledged; it can change hands
 * without anybody handling an event twice.
 *
 * A consumer is active until its last lease ends, which its row says, and as
 * long as it waits in es_fetch().  That cannot be read from a table, since the
 * call has not committed: shared memory has an entry for each backend.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "es.h"
#include "fanout/lease.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"
#include "store/watermark.h"
#include "utils/array.h"
#include "utils/builtins.h"

/* A session that waits in es_fetch(). */
typedef struct Waiter
{
	Oid			database;		/* InvalidOid: nobody */
	uint64		subscription;	/* hashes of the names */
	uint64		consumer;
} Waiter;

typedef struct Waiters
{
	LWLock	   *lock;
	Waiter		waiter[FLEXIBLE_ARRAY_MEMBER];
} Waiters;

static Waiters *shared = NULL;

/* Whether those who wait must look again when this transaction commits. */
static bool wake_at_commit = false;

#define PARTITION_COLUMNS \
	"SELECT p.partition, p.position, p.delivered, p.attempts, p.batch, p.failing, " \
	"  p.failures, p.retry_at, p.consumer, p.lease_until, " \
	"  EXISTS (SELECT FROM es.subscription_dead_letter d WHERE d.subscription = p.subscription " \
	"    AND d.partition = p.partition AND d.status = 'delivered'), p.handed_out " \
	"FROM es.subscription_partition p WHERE p.subscription = $1 "

static EsStatement select_partitions = ES_SQL(
	PARTITION_COLUMNS "ORDER BY p.partition", 1, TEXTOID);
static EsStatement lock_partitions = ES_SQL(
	PARTITION_COLUMNS "AND p.partition = ANY ($2) ORDER BY p.partition "
	"FOR UPDATE OF p SKIP LOCKED", 2, TEXTOID, INT4ARRAYOID);
static EsStatement lock_held = ES_SQL(
	PARTITION_COLUMNS "AND p.consumer = $2 ORDER BY p.partition FOR UPDATE OF p",
	2, TEXTOID, TEXTOID);
static EsStatement select_members = ES_SQL(
	"SELECT consumer, active_until FROM es.subscription_consumer "
	"WHERE subscription = $1 AND active_until > clock_timestamp()", 1, TEXTOID);

static Size
shmem_size(void)
{
	return add_size(offsetof(Waiters, waiter),
					mul_size(MaxBackends + 1, sizeof(Waiter)));
}

void
es_lease_shmem_request(void)
{
	RequestAddinShmemSpace(shmem_size());
	RequestNamedLWLockTranche("es consumers", 1);
}

void
es_lease_shmem_init(void)
{
	bool		found;

	shared = ShmemInitStruct("es consumers", shmem_size(), &found);
	if (found)
		return;
	memset(shared, 0, shmem_size());
	shared->lock = &GetNamedLWLockTranche("es consumers")->lock;
}

static uint64
hash_of(const text *name)
{
	return hash_bytes_extended((const unsigned char *) VARDATA_ANY(name),
							   VARSIZE_ANY_EXHDR(name), 0);
}

static void
set_waiter(Oid database, uint64 subscription, uint64 consumer)
{
	Waiter	   *me = &shared->waiter[ES_MY_SLOT];

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	me->database = database;
	me->subscription = subscription;
	me->consumer = consumer;
	LWLockRelease(shared->lock);
}

/*
 * Let the others know that this consumer is there, as long as it waits.
 */
void
es_waiter_begin(text *subscription, text *consumer)
{
	set_waiter(MyDatabaseId, hash_of(subscription), hash_of(consumer));
}

void
es_waiter_end(void)
{
	set_waiter(InvalidOid, 0, 0);
}

/*
 * What this transaction does concerns those who wait in es_fetch().
 */
void
es_wake_consumers_at_commit(void)
{
	(void) es_database();
	wake_at_commit = true;
}

static void
xact_callback(XactEvent event, void *arg)
{
	if (event == XACT_EVENT_COMMIT && wake_at_commit)
		ConditionVariableBroadcast(&es_database()->news);
	if (event == XACT_EVENT_COMMIT || event == XACT_EVENT_ABORT)
		wake_at_commit = false;
}

void
es_lease_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
}

static bool
is_mine(const EsGroup *group, const EsPartition *p)
{
	return p->consumer != NULL &&
		strlen(p->consumer) == VARSIZE_ANY_EXHDR(group->consumer) &&
		memcmp(p->consumer, VARDATA_ANY(group->consumer), strlen(p->consumer)) == 0;
}

/*
 * Whether events of the partition are handed out and not acknowledged.
 */
bool
es_partition_is_busy(const EsPartition *p)
{
	return p->delivered > p->position || p->retrying;
}

static TimestampTz
time_column(uint64 row, int column)
{
	bool		isnull;
	Datum		value = es_spi_value(row, column, &isnull);

	return isnull ? 0 : DatumGetTimestampTz(value);
}

/*
 * Read a row of one of the statements above.
 */
static void
read_partition(EsPartition *p, uint64 row)
{
	bool		isnull;

	p->number = DatumGetInt32(es_spi_value(row, 1, &isnull));
	p->position = DatumGetInt64(es_spi_value(row, 2, &isnull));
	p->delivered = DatumGetInt64(es_spi_value(row, 3, &isnull));
	p->attempts = DatumGetInt32(es_spi_value(row, 4, &isnull));
	p->batch = DatumGetInt32(es_spi_value(row, 5, &isnull));
	p->failing = DatumGetInt64(es_spi_value(row, 6, &isnull));
	if (isnull)
		p->failing = 0;
	p->failures = DatumGetInt32(es_spi_value(row, 7, &isnull));
	p->retry_at = time_column(row, 8);
	p->consumer = es_spi_text(row, 9);
	p->lease_until = time_column(row, 10);
	p->retrying = DatumGetBool(es_spi_value(row, 11, &isnull));
	p->handed_out = DatumGetInt64(es_spi_value(row, 12, &isnull));
}

static void
note_change(EsGroup *group, TimestampTz when)
{
	if (when > group->now && when < group->next_change)
		group->next_change = when;
}

static int
compare_hashes(const void *a, const void *b)
{
	uint64		x = *(const uint64 *) a;
	uint64		y = *(const uint64 *) b;

	return x < y ? -1 : x > y ? 1 : 0;
}

/*
 * Add who waits in es_fetch() on the subscription to an array with room for
 * all of them.
 */
static int
add_waiters(uint64 subscription, uint64 *members, int n)
{
	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < MaxBackends; i++)
	{
		Waiter	   *w = &shared->waiter[i];

		if (w->database == MyDatabaseId && w->subscription == subscription)
			members[n++] = w->consumer;
	}
	LWLockRelease(shared->lock);
	return n;
}

/*
 * Learn who the active consumers are: those with a lease, those who wait, and
 * ourselves.
 */
static void
load_members(EsGroup *group)
{
	Datum		key = PointerGetDatum(group->subscription->name);
	uint64		rows = es_run(&select_members, &key, NULL);
	uint64	   *members = palloc(sizeof(uint64) * (rows + MaxBackends + 1));
	int			n = 0;
	int			unique = 0;

	for (uint64 i = 0; i < rows; i++)
	{
		bool		isnull;

		members[n++] = hash_of(DatumGetTextPP(es_spi_value(i, 1, &isnull)));
		note_change(group, time_column(i, 2));
	}
	members[n++] = hash_of(group->consumer);
	n = add_waiters(hash_of(group->subscription->name), members, n);
	qsort(members, n, sizeof(uint64), compare_hashes);
	for (int i = 0; i < n; i++)
		if (i == 0 || members[i] != members[i - 1])
			members[unique++] = members[i];
	group->members = members;
	group->nmembers = unique;
}

/*
 * Read the state of the subscription as it is committed.  Between
 * es_spi_begin() and es_spi_end().
 */
void
es_group_load(EsGroup *group)
{
	Datum		key = PointerGetDatum(group->subscription->name);
	uint64		n;

	group->now = GetCurrentTimestamp();
	group->next_change = DT_NOEND;
	load_members(group);
	n = es_run(&select_partitions, &key, NULL);
	if (n != group->subscription->partitions)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("subscription \"%s\" was dropped",
						text_to_cstring(group->subscription->name))));
	group->partitions = palloc0(sizeof(EsPartition) * n);
	for (uint64 i = 0; i < n; i++)
	{
		EsPartition *p = &group->partitions[i];

		read_partition(p, i);
		note_change(group, p->lease_until);
		note_change(group, p->retry_at);
	}
}

/*
 * How many partitions a consumer should hold.
 */
static int
share_of(const EsGroup *group, uint64 consumer)
{
	int			n = group->subscription->partitions;
	uint64	   *found = bsearch(&consumer, group->members, group->nmembers,
								sizeof(uint64), compare_hashes);

	if (found == NULL)
		return 0;
	return n / group->nmembers + (found - group->members < n % group->nmembers ? 1 : 0);
}

/*
 * Decide which of the partitions that we hold we keep: first those with events
 * that we have not acknowledged, which we get again.  Returns how many more
 * should be ours.
 */
static int
keep_mine(EsGroup *group, int share)
{
	int			n = group->subscription->partitions;

	for (int busy = 1; busy >= 0; busy--)
		for (int i = 0; i < n; i++)
		{
			EsPartition *p = &group->partitions[i];

			if (!is_mine(group, p) || es_partition_is_busy(p) != (busy == 1))
				continue;
			p->wanted = share > 0;
			p->surplus = !p->wanted;
			if (p->wanted)
				share--;
		}
	return share;
}

/*
 * Take partitions that nobody holds, or whose lease has ended.
 */
static int
take_free(EsGroup *group, int share)
{
	for (int i = 0; i < group->subscription->partitions && share > 0; i++)
	{
		EsPartition *p = &group->partitions[i];

		if (p->wanted || is_mine(group, p) ||
			(p->consumer != NULL && p->lease_until > group->now))
			continue;
		p->wanted = true;
		share--;
	}
	return share;
}

/*
 * How many partitions a consumer holds that we have not set our eyes on.
 */
static int
held_by(const EsGroup *group, const char *consumer)
{
	int			n = 0;

	for (int i = 0; i < group->subscription->partitions; i++)
	{
		EsPartition *p = &group->partitions[i];

		if (!p->wanted && p->consumer && strcmp(p->consumer, consumer) == 0)
			n++;
	}
	return n;
}

/*
 * Take idle partitions from consumers that have more than their share; the
 * last first, since these keep their first.
 */
static void
take_surplus(EsGroup *group, int share)
{
	for (int i = group->subscription->partitions - 1; i >= 0 && share > 0; i--)
	{
		EsPartition *p = &group->partitions[i];
		uint64		holder;

		if (p->wanted || p->consumer == NULL || is_mine(group, p) ||
			es_partition_is_busy(p))
			continue;
		holder = hash_bytes_extended((const unsigned char *) p->consumer,
									 strlen(p->consumer), 0);
		if (held_by(group, p->consumer) <= share_of(group, holder))
			continue;
		p->wanted = true;
		share--;
	}
}

/*
 * Mark the partitions that should be ours.
 */
void
es_group_share_out(EsGroup *group)
{
	int			share = keep_mine(group, share_of(group, hash_of(group->consumer)));

	share = take_free(group, share);
	take_surplus(group, share);
}

/*
 * Whether a partition, as it is now that we have its lock, can be ours: nobody
 * has touched it since we decided so, or it was ours then and is.
 */
static bool
is_still_ours(const EsGroup *group, const EsPartition *before, const EsPartition *after)
{
	if (is_mine(group, before))
		return is_mine(group, after);
	return after->lease_until == before->lease_until &&
		after->delivered == before->delivered &&
		after->handed_out == before->handed_out &&
		after->position == before->position &&
		after->retrying == before->retrying &&
		(after->consumer == NULL) == (before->consumer == NULL) &&
		(after->consumer == NULL || strcmp(after->consumer, before->consumer) == 0);
}

/*
 * Lock the partitions that are wanted or surplus, as far as that needs no
 * waiting; the others are neither any more.
 */
void
es_group_lock(EsGroup *group)
{
	int			n = group->subscription->partitions;
	Datum	   *numbers = palloc(sizeof(Datum) * n);
	bool	   *locked = palloc0(sizeof(bool) * n);
	int			count = 0;
	uint64		rows;
	Datum		values[2];

	for (int i = 0; i < n; i++)
		if (group->partitions[i].wanted || group->partitions[i].surplus)
			numbers[count++] = Int32GetDatum(i);
	values[0] = PointerGetDatum(group->subscription->name);
	values[1] = PointerGetDatum(construct_array(numbers, count, INT4OID,
												sizeof(int32), true, TYPALIGN_INT));
	rows = count > 0 ? es_run(&lock_partitions, values, NULL) : 0;
	for (uint64 row = 0; row < rows; row++)
	{
		EsPartition now = {0};
		EsPartition *p;

		read_partition(&now, row);
		p = &group->partitions[now.number];
		if (!is_still_ours(group, p, &now))
			continue;
		now.wanted = p->wanted;
		now.surplus = p->surplus;
		*p = now;
		locked[now.number] = true;
	}
	for (int i = 0; i < n; i++)
		if (!locked[i])
			group->partitions[i].wanted = group->partitions[i].surplus = false;
}

/*
 * Lock the partitions that a consumer holds, whether or not its lease has
 * ended, and wait for that if need be.  Returns how many they are.  Between
 * es_spi_begin() and es_spi_end().
 */
int
es_lock_leases(const EsSubscription *subscription, text *consumer,
			 EsPartition **partitions)
{
	Datum		values[2];
	int			n;

	values[0] = PointerGetDatum(subscription->name);
	values[1] = PointerGetDatum(consumer);
	n = (int) es_run(&lock_held, values, NULL);
	*partitions = palloc0(sizeof(EsPartition) * Max(n, 1));
	for (int i = 0; i < n; i++)
		read_partition(&(*partitions)[i], i);
	return n;
}
