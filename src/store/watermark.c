/*-------------------------------------------------------------------------
 * watermark.c
 *	  Handing out positions, and the settled position: how far the log can be
 *	  read without loss.
 *
 * Positions are handed out before commit, so commit order is not position
 * order: a reader that takes "position > last" loses what commits late.  Each
 * appending backend therefore publishes, before it takes its first position,
 * a lower bound of it in a slot of its own, and takes the bound back when the
 * transaction is no longer in progress for any snapshot.
 *
 *		append	under the mutex: slot = next, if empty; p = next; next += n
 *		end		XACT_EVENT_COMMIT or ABORT, both after ProcArrayEndTransaction:
 *				slot = 0
 *		reader	under the mutex: hi = next - 1
 *				barrier; W = min(hi, min(slots in use) - 1); barrier;
 *				then, and not before, the snapshot that reads up to W
 *
 * Invariant: a transaction with a position at or below W is visible, or
 * aborted, for every snapshot taken after W was computed.  Proof: let p be a
 * position at or below W, so p <= hi.  It was taken under the mutex before the
 * reader held the mutex, and the slot was written in the same critical
 * section, so the reader sees the slot as it was written or as it was cleared
 * later.  A slot in use holds a bound <= p and W would be below p; so it was
 * cleared, which happens after ProcArrayEndTransaction, and GetSnapshotData,
 * which takes ProcArrayLock, comes after our reading of the slot.
 *
 * The counter lives in shared memory.  The sequence es.event_position is its
 * durable upper bound, moved ahead and flushed before any position up to it
 * is used, so after a crash the counter begins above every position
 * that a client ever saw, also of events that were lost with an asynchronous
 * commit.
 *
 * Only transactions that appended hold W back.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog.h"
#include "catalog/pg_sequence.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "es.h"
#include "fault.h"
#include "funcapi.h"
#include "guc.h"
#include "miscadmin.h"
#include "store/feed.h"
#include "store/table.h"
#include "store/wakeup.h"
#include "store/watermark.h"
#include "storage/ipc.h"
#include "storage/lmgr.h"
#include "storage/proc.h"
#include "storage/shmem.h"
#include "utils/fmgrprotos.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "utils/syscache.h"

PG_FUNCTION_INFO_V1(es_stat_append);

/*
 * Positions that are reserved ahead.  Who sees that fewer than half of them are
 * left reserves more while the others go on: one flush for so many.
 */
#define RESERVE	INT64CONST(8192)

/*
 * One for each backend.  Written by its backend alone; padded, so that
 * appenders do not share cache lines.
 */
typedef union Slot
{
	struct
	{
		pg_atomic_uint64 first; /* lower bound of its positions, or 0 */
		Oid			database;
		int			pid;
	}			s;
	char		pad[PG_CACHE_LINE_SIZE];
} Slot;

typedef struct Watermark
{
	LWLock	   *lock;			/* protects which entry is whose */
	Slot	   *slots;
	int			nslots;
	EsDatabase	databases[FLEXIBLE_ARRAY_MEMBER];
} Watermark;

static Watermark *shared = NULL;

static EsStatement write_settled = ES_SQL(
	"INSERT INTO es.settled AS s (position, updated_at) VALUES ($1, clock_timestamp()) "
	"ON CONFLICT (one) DO UPDATE SET position = excluded.position, updated_at = excluded.updated_at "
	"WHERE s.position < excluded.position RETURNING ctid",
	1, INT8OID);
static EsTable settled_table = ES_TABLE(3, BOOLOID, INT8OID, TIMESTAMPTZOID);

/* Set at first use, for the life of the backend. */
static EsDatabase *my_database = NULL;
static Slot *my_slot = NULL;

/*
 * Whether the end of this transaction is news to the workers, and whether what
 * they go by has changed with it.
 */
static bool wake = false;
static bool changed = false;
static bool timers_changed = false;

static Size
shmem_size(void)
{
	Size		size = offsetof(Watermark, databases);

	size = add_size(size, mul_size(es_max_databases, sizeof(EsDatabase)));
	size = CACHELINEALIGN(size);
	return add_size(size, mul_size(MaxBackends + 1, sizeof(Slot)));
}

void
es_watermark_shmem_request(void)
{
	RequestAddinShmemSpace(shmem_size());
	RequestNamedLWLockTranche("es", 1 + es_max_databases);
}

void
es_watermark_shmem_init(void)
{
	bool		found;
	LWLockPadded *locks;

	shared = ShmemInitStruct("es watermark", shmem_size(), &found);
	if (found)
		return;

	memset(shared, 0, shmem_size());
	locks = GetNamedLWLockTranche("es");
	shared->lock = &locks[0].lock;
	for (int i = 0; i < es_max_databases; i++)
	{
		EsDatabase *d = &shared->databases[i];

		SpinLockInit(&d->mutex);
		d->lock = &locks[1 + i].lock;
		pg_atomic_init_u32(&d->wanted, 0);
		pg_atomic_init_u32(&d->served, 0);
		pg_atomic_init_u32(&d->waiters, 0);
		pg_atomic_init_u64(&d->changes, 0);
		pg_atomic_init_u32(&d->watched_changes, 0);
		pg_atomic_init_u64(&d->timer_changes, 0);
		ConditionVariableInit(&d->progress);
		ConditionVariableInit(&d->news);
	}
	shared->nslots = MaxBackends;
	shared->slots = (Slot *) CACHELINEALIGN(&shared->databases[es_max_databases]);
	for (int i = 0; i < shared->nslots; i++)
		pg_atomic_init_u64(&shared->slots[i].s.first, 0);
}

/*
 * The entry of a database, or NULL.  The caller holds shared->lock.
 */
static EsDatabase *
find_database(Oid oid)
{
	for (int i = 0; i < es_max_databases; i++)
		if (shared->databases[i].oid == oid)
			return &shared->databases[i];
	return NULL;
}

/*
 * The entry of a database, made where there is none; NULL when all are in use.
 */
static EsDatabase *
find_or_make_database(Oid oid)
{
	EsDatabase *d;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	d = find_database(oid);
	if (d == NULL && (d = find_database(InvalidOid)) != NULL)
	{
		d->sequence = InvalidOid;
		pg_atomic_write_u32(&d->wanted, 0);
		pg_atomic_write_u32(&d->served, 0);
		pg_atomic_write_u32(&d->waiters, 0);
		pg_atomic_write_u32(&d->watched_changes, 0);
		d->oid = oid;
	}
	LWLockRelease(shared->lock);
	return d;
}

/*
 * The entry of this backend's database.  An error where the library was not
 * preloaded.
 */
EsDatabase *
es_database(void)
{
	if (my_database != NULL)
		return my_database;

	if (shared == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("es must be loaded through shared_preload_libraries"),
				 errhint("Put the line \"shared_preload_libraries = 'es'\" into postgresql.conf and restart the server.")));

	my_database = find_or_make_database(MyDatabaseId);
	if (my_database == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("too many databases with an event log"),
				 errhint("Raise es.max_databases, which is %d, and restart the server.",
						 es_max_databases)));
	my_slot = &shared->slots[ES_MY_SLOT];
	my_slot->s.database = MyDatabaseId;
	my_slot->s.pid = MyProcPid;
	return my_database;
}

/*
 * The databases that want a scheduler and have none.
 */
int
es_databases_wanted(Oid *databases, int max)
{
	int			n = 0;

	LWLockAcquire(shared->lock, LW_SHARED);
	for (int i = 0; i < es_max_databases && n < max; i++)
	{
		EsDatabase *d = &shared->databases[i];

		if (OidIsValid(d->oid) &&
			pg_atomic_read_u32(&d->wanted) && !pg_atomic_read_u32(&d->served))
			databases[n++] = d->oid;
	}
	LWLockRelease(shared->lock);
	return n;
}

/*
 * Say that a database should have a scheduler, or should not.  Returns whether
 * it should have had one so far.
 */
bool
es_want_database(Oid database, bool wanted)
{
	EsDatabase *d;
	bool		before = false;

	if (wanted)
		(void) find_or_make_database(database);
	LWLockAcquire(shared->lock, LW_SHARED);
	d = find_database(database);
	if (d != NULL)
		before = pg_atomic_exchange_u32(&d->wanted, wanted ? 1 : 0) != 0;
	LWLockRelease(shared->lock);
	return before;
}

/*
 * This process is the scheduler of its database, or is so no longer.
 */
void
es_serve_database(bool served)
{
	/* One that found no log shall not take up an entry when it leaves. */
	EsDatabase *d = served ? es_database() : my_database;

	if (d == NULL)
		return;
	if (served)
		pg_atomic_write_u32(&d->wanted, 1);
	pg_atomic_write_u32(&d->served, served ? 1 : 0);
}

bool
es_database_is_served(Oid database)
{
	EsDatabase *d;
	bool		served;

	LWLockAcquire(shared->lock, LW_SHARED);
	d = find_database(database);
	served = d != NULL && pg_atomic_read_u32(&d->served) != 0;
	LWLockRelease(shared->lock);
	return served;
}

/*
 * The database was dropped: free its entry.
 */
void
es_forget_database(Oid database)
{
	EsDatabase *d;

	LWLockAcquire(shared->lock, LW_EXCLUSIVE);
	d = find_database(database);
	if (d != NULL)
		d->oid = InvalidOid;
	LWLockRelease(shared->lock);
}

/*
 * Read the sequence past our own permissions: the last value it reserved, or
 * 0 where it reserved none.
 */
static int64
reserved_bound(Oid sequence)
{
	Relation	rel = relation_open(sequence, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, SnapshotAny, 0, NULL);
	int64		bound = 0;

	if (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;
		int64		last = DatumGetInt64(slot_getattr(slot, SEQ_COL_LASTVAL, &isnull));

		bound = DatumGetBool(slot_getattr(slot, SEQ_COL_CALLED, &isnull))
			? last : last - 1;
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	relation_close(rel, AccessShareLock);
	return Max(bound, 0);
}

/*
 * The settled position as the scheduler last wrote it.
 */
static int64
recorded_settled_position(Snapshot snapshot)
{
	Relation	rel = table_open(es_catalog()->settled, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	int64		position = 0;

	if (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		bool		isnull;

		position = DatumGetInt64(slot_getattr(slot, 2, &isnull));
	}
	table_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return position;
}

/*
 * The highest position that is in the log or was announced, or 0: what no new
 * position may be, even where somebody set the sequence back.
 */
static int64
highest_used(void)
{
	const EsCatalog *catalog = es_catalog();
	Relation	rel = table_open(catalog->event, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	int64		highest = recorded_settled_position(SnapshotSelf);
	bool		isnull;

	if (es_index_find(rel, catalog->event_key, NULL, 0, BackwardScanDirection, slot))
	{
		int64		newest = DatumGetInt64(slot_getattr(slot, 1, &isnull));

		highest = Max(highest, newest);
	}
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return highest;
}

/*
 * Begin the counter behind what the sequence has reserved and what has been
 * used, or move it there where both came from elsewhere: by a restore or a
 * subscription.  In a log that was made here there is nothing to move.
 */
static void
seed(EsDatabase *d, Oid sequence)
{
	int64		used = highest_used();
	int64		reserved;

	/* As in extend(), which may be about to make the first positions. */
	LockRelationOid(sequence, AccessShareLock);
	LWLockAcquire(d->lock, LW_EXCLUSIVE);
	reserved = reserved_bound(sequence);
	SpinLockAcquire(&d->mutex);
	if (d->sequence != sequence)
	{
		d->next = 1;
		d->bound = 0;
		d->sequence = sequence;
	}
	if (reserved > d->bound)
	{
		d->next = reserved + 1;
		d->bound = reserved;
	}
	d->next = Max(d->next, used + 1);
	d->bound = Max(d->bound, used);
	SpinLockRelease(&d->mutex);
	LWLockRelease(d->lock);
	UnlockRelationOid(sequence, AccessShareLock);
}

/*
 * Our database with a counter that fits its sequence.
 */
static EsDatabase *
seeded_database(void)
{
	EsDatabase *d = es_database();
	Oid			sequence = es_catalog()->event_position;

	/* An unlocked look: seed() makes sure. */
	if (es_feed_may_have_ended() || d->sequence != sequence || d->next <= 1)
		seed(d, sequence);
	return d;
}

/*
 * Take positions from the counter if the sequence covers them: the first one,
 * or 0.
 */
static inline int64
try_take(EsDatabase *d, int64 count)
{
	int64		first = 0;

	SpinLockAcquire(&d->mutex);
	if (count <= d->bound - d->next + 1)
	{
		first = d->next;
		if (pg_atomic_read_u64(&my_slot->s.first) == 0)
			pg_atomic_write_u64(&my_slot->s.first, (uint64) first);
		d->next += count;
	}
	SpinLockRelease(&d->mutex);
	return first;
}

/*
 * Set the sequence, which is its owner's, and flush that.  By setval() and not
 * by nextval(), since that would become the session's lastval().
 */
static void
set_reserved_bound(Oid sequence, int64 bound)
{
	Oid			user;
	int			security;

	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(es_catalog()->owner,
						   security | SECURITY_LOCAL_USERID_CHANGE);
	(void) DirectFunctionCall2(setval_oid, ObjectIdGetDatum(sequence),
							   Int64GetDatum(bound));
	SetUserIdAndSecContext(user, security);
	XLogFlush(XactLastRecEnd);
}

static int64
last_of_sequence(Oid sequence)
{
	HeapTuple	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(sequence));
	int64		last;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for sequence %u", sequence);
	last = ((Form_pg_sequence) GETSTRUCT(tuple))->seqmax;
	ReleaseSysCache(tuple);
	return last;
}

/*
 * Let the sequence cover at least "count" more positions, or, where that is 0,
 * those that will be wanted next, unless somebody sees to it already.
 *
 * The sequence's lock is taken before ours, so that nothing can make us wait
 * while we hold the LWLock.  The counter learns of the new bound when that is
 * on disk: with synchronous_commit off a commit is seen before it is, and what
 * a reader has seen must not be handed out again after a crash.
 */
static void
extend(EsDatabase *d, int64 count)
{
	int64		next;
	int64		bound;
	int64		reserved;
	int64		wanted;
	int64		last = last_of_sequence(d->sequence);

	LockRelationOid(d->sequence, RowExclusiveLock);
	if (count > 0)
		LWLockAcquire(d->lock, LW_EXCLUSIVE);
	else if (!LWLockConditionalAcquire(d->lock, LW_EXCLUSIVE))
		return;
	next = d->next;
	bound = d->bound;
	reserved = reserved_bound(d->sequence);
	/* A sequence that somebody moved ahead leaves a hole. */
	if (reserved > bound)
	{
		next = reserved + 1;
		bound = reserved;
	}
	if (count > last - next + 1)
		ereport(ERROR,
				(errcode(ERRCODE_SEQUENCE_GENERATOR_LIMIT_EXCEEDED),
				 errmsg("the log has used up all positions"),
				 errdetail("The next is " INT64_FORMAT ", the last that sequence es.event_position allows is " INT64_FORMAT ".",
						   next, last)));
	wanted = count > last - next + 1 - RESERVE ? last : next - 1 + count + RESERVE;
	if (wanted > bound && bound - next + 1 < count + RESERVE / 2)
	{
		bound = wanted;
		set_reserved_bound(d->sequence, bound);
	}

	/* Others have taken positions meanwhile. */
	SpinLockAcquire(&d->mutex);
	d->next = Max(d->next, next);
	d->bound = bound;
	SpinLockRelease(&d->mutex);
	LWLockRelease(d->lock);
}

/*
 * Take "count" consecutive positions and return the first.  Call it with the
 * stream's lock held, so that position order agrees with version order.
 */
int64
es_take_positions(int64 count)
{
	EsDatabase *d = seeded_database();
	int64		first;

	/* The sequence wants an xid; get it before anybody waits for us. */
	(void) GetTopTransactionId();
	wake = true;
	while ((first = try_take(d, count)) == 0)
		extend(d, count);

	/* An unlocked look: extend() makes sure. */
	if (d->bound - d->next < RESERVE / 2)
		extend(d, 0);
	return first;
}

static int64
compute_settled(EsDatabase *d)
{
	int64		settled;

	SpinLockAcquire(&d->mutex);
	settled = d->next - 1;
	SpinLockRelease(&d->mutex);

	pg_memory_barrier();
	for (int i = 0; i < shared->nslots; i++)
	{
		Slot	   *slot = &shared->slots[i];
		int64		first = (int64) pg_atomic_read_u64(&slot->s.first);

		if (first != 0 && first <= settled && slot->s.database == MyDatabaseId)
			settled = first - 1;
	}
	pg_memory_barrier();
	return settled;
}

/*
 * The settled position W.  Take the snapshot that reads up to W after this.
 *
 * Where the snapshot is older than any W we could compute (REPEATABLE READ) or
 * there are no appenders to ask (a standby, a logical subscriber), go by what
 * the scheduler wrote: it is visible together with everything it covers.
 */
int64
es_settled_position(void)
{
	EsFeed		feed = es_feed();

	if (feed == ES_FEED_SYNCING)
		return 0;
	if (feed == ES_FEED_READY || RecoveryInProgress() || IsolationUsesXactSnapshot())
		return recorded_settled_position(GetActiveSnapshot());
	return compute_settled(seeded_database());
}

/*
 * The same for a worker outside a transaction: -1 where the counter is not
 * that of the log as we know it, which a transaction has to mend.
 */
int64
es_settled_peek(void)
{
	EsDatabase *d = es_database();
	const EsCatalog *catalog = es_catalog_cached();

	if (catalog == NULL || d->sequence != catalog->event_position)
		return -1;
	return compute_settled(d);
}

/*
 * The highest position handed out so far.
 */
int64
es_last_position(void)
{
	EsDatabase *d = seeded_database();
	int64		last;

	SpinLockAcquire(&d->mutex);
	last = d->next - 1;
	SpinLockRelease(&d->mutex);
	return last;
}

/*
 * Write the settled position down for readers that cannot compute it.  In a log
 * that a subscription feeds, so does that.  Only the scheduler calls this, and
 * whoever listens waits for it, so it knows where the row is.
 */
void
es_settled_record(int64 position)
{
	static ItemPointerData row;
	EsWriter	writer;
	Datum		values[2];
	bool		moved;

	if (es_feed() != ES_FEED_NONE)
		return;
	values[0] = Int64GetDatum(position);
	values[1] = TimestampTzGetDatum(GetCurrentTimestamp());
	es_writer_open(&writer, &settled_table, es_catalog()->settled);
	moved = es_writer_update_row(&writer, &row, values);
	es_writer_close(&writer);
	if (!moved)
	{
		bool		isnull;
		EsSpi		spi;

		es_spi_begin(&spi);
		if (es_run(&write_settled, values, NULL) == 1)
			ItemPointerCopy((ItemPointer) DatumGetPointer(es_spi_value(0, 1, &isnull)), &row);
		es_spi_end(&spi);
	}
}

/*
 * A lower bound of the positions that this transaction took, or 0.
 */
int64
es_first_own_position(void)
{
	return my_slot ? (int64) pg_atomic_read_u64(&my_slot->s.first) : 0;
}

/*
 * Let the workers look for news when this transaction ends.
 */
void
es_news_at_commit(void)
{
	(void) es_database();
	wake = true;
}

/*
 * The same where what they go by, such as the definitions of projections, has
 * changed.
 */
void
es_wake_at_commit(void)
{
	es_news_at_commit();
	changed = true;
}

/*
 * The same where the log is being dropped; raises no error, also where the
 * library was not preloaded or the database is not known to it.
 */
void
es_wake_at_drop(void)
{
	bool		known;

	if (shared == NULL)
		return;
	LWLockAcquire(shared->lock, LW_SHARED);
	known = find_database(MyDatabaseId) != NULL;
	LWLockRelease(shared->lock);
	if (known)
		es_wake_at_commit();
}

/*
 * How often what the workers go by has changed.  Invalidations cannot tell
 * them: these are sent after the callback that wakes, so that who is quick
 * would find none and sleep on.
 */
uint64
es_changes(void)
{
	return pg_atomic_read_u64(&es_database()->changes);
}

/*
 * The same for scheduled commands, which change more often and concern fewer.
 */
void
es_timers_wake_at_commit(void)
{
	(void) es_database();
	wake = true;
	timers_changed = true;
}

uint64
es_timer_changes(void)
{
	return pg_atomic_read_u64(&es_database()->timer_changes);
}

/*
 * The transaction is no longer in progress for anybody: free the slot, then
 * wake who waited for it.  An abort is news too, for it may have held W back.
 * No error may be raised here.
 */
static void
end_transaction(void)
{
	if (!wake)
		return;
	wake = false;
	/* Who counts our events as settled goes by our definitions, too. */
	if (changed)
		pg_atomic_fetch_add_u64(&my_database->changes, 1);
	pg_atomic_write_u64(&my_slot->s.first, 0);
	if (changed)
	{
		/* What a session waits for may have been dropped. */
		if (pg_atomic_read_u32(&my_database->waiters) > 0)
			ConditionVariableBroadcast(&my_database->progress);
	}
	if (timers_changed)
		pg_atomic_fetch_add_u64(&my_database->timer_changes, 1);
	changed = false;
	timers_changed = false;
	es_wake_database(MyDatabaseId, false);
	if (!pg_atomic_read_u32(&my_database->served) &&
		pg_atomic_exchange_u32(&my_database->wanted, 1) == 0)
		es_wake_launcher();
}

static void
xact_callback(XactEvent event, void *arg)
{
	switch (event)
	{
		case XACT_EVENT_PRE_COMMIT:
			if (wake)
				ES_FAULT("commit.before");
			break;
		case XACT_EVENT_COMMIT:
			if (wake)
				ES_FAULT("commit.visible");
			end_transaction();
			break;
		case XACT_EVENT_ABORT:
			end_transaction();
			break;
		case XACT_EVENT_PRE_PREPARE:
			/* COMMIT PREPARED runs no callback that could free and wake. */
			if (wake)
				ereport(ERROR,
						(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
						 es_first_own_position() != 0
						 ? errmsg("cannot PREPARE a transaction that has appended events")
						 : errmsg("cannot PREPARE a transaction that has changed what the workers of es go by"),
						 errhint("Use COMMIT.")));
			break;
		default:
			break;
	}
}

void
es_watermark_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
}

/*
 * es.stat_append(): the transactions that have appended and not ended.
 */
Datum
es_stat_append(PG_FUNCTION_ARGS)
{
	ReturnSetInfo *rsinfo = (ReturnSetInfo *) fcinfo->resultinfo;

	(void) es_database();
	InitMaterializedSRF(fcinfo, 0);
	for (int i = 0; i < shared->nslots; i++)
	{
		Slot	   *slot = &shared->slots[i];
		uint64		first = pg_atomic_read_u64(&slot->s.first);
		Datum		values[2];
		bool		nulls[2] = {false, false};

		if (first == 0 || slot->s.database != MyDatabaseId)
			continue;
		values[0] = Int32GetDatum(slot->s.pid);
		values[1] = Int64GetDatum((int64) first);
		tuplestore_putvalues(rsinfo->setResult, rsinfo->setDesc, values, nulls);
	}
	return (Datum) 0;
}
