/*-------------------------------------------------------------------------
 * lock.c
 *	  The locks of the log: streams, and tags with types.
 *
 * All are held to the end of the transaction.
 *
 *		es.event, ROW EXCLUSIVE			everybody who appends or is about to
 *		es.event, SHARE ROW EXCLUSIVE	nobody else appends
 *		stream, EXCLUSIVE				who appends to the stream
 *		tag of any type, SHARE			who appends an event with the tag
 *		tag of one type, SHARE			the same, of that type
 *		tag of any type, EXCLUSIVE		who relies on there being no further
 *		tag of one type, EXCLUSIVE		event with the tag (of that type)
 *
 * A stream's or tag's lock is a lock on the "object" whose class is es.event
 * or es.tag and whose id is a hash of the name; two names with one hash merely
 * queue.  A transaction that would hold more than es.max_stream_locks of them
 * takes es.event in SHARE ROW EXCLUSIVE mode instead, which stands for all:
 * whoever takes any of the others holds ROW EXCLUSIVE there first.
 *
 * To keep deadlocks rare, one call takes es.event first, then streams in the
 * order of their names, then tags in the order of their keys, each at once in
 * the strongest mode that the call needs.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog.h"
#include "common/hashfn.h"
#include "es.h"
#include "guc.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "storage/lock.h"
#include "store/append.h"
#include "store/held.h"
#include "store/lock.h"

/* Locks of this transaction, those apart that stand for all. */
static EsHeld held;

/* Whether a decision was refused the lock on the log; es_log_was_refused(). */
static bool log_refused = false;

/*
 * Lock es.event against all other appenders.
 *
 * A decision holds it in a weaker mode already, as may another one that wants
 * it, too: both would wait for each other.  So a decision that cannot have it
 * at once gives up, with the error that such waiting ends in; it is made again
 * with the lock taken first (submit.c).
 */
void
es_lock_log(void)
{
	Oid			event = es_catalog()->event;

	if (ConditionalLockRelationOid(event, ShareRowExclusiveLock))
		return;
	if (es_deciding())
	{
		log_refused = true;
		ereport(ERROR,
				(errcode(ERRCODE_T_R_DEADLOCK_DETECTED),
				 errmsg("could not lock the log for a decision that began without the lock"),
				 errdetail("Somebody else appends, and waiting with what is locked already could end in a deadlock."),
				 errhint("Retry the transaction.")));
	}
	LockRelationOid(event, ShareRowExclusiveLock);
}

/*
 * Whether a decision gave up for want of the lock on the log since this was
 * last asked.
 */
bool
es_log_was_refused(void)
{
	bool		refused = log_refused;

	log_refused = false;
	return refused;
}

static void
set_tag(LOCKTAG *tag, Oid class, uint64 key)
{
	SET_LOCKTAG_OBJECT(*tag, MyDatabaseId, class, (uint32) key,
					   (uint16) (key >> 32));
}

/*
 * Whether the transaction has a lock, or the stronger one of the same key.
 */
static bool
is_held(const LOCKTAG *tag, LOCKMODE mode)
{
	return es_lock_held(tag, mode) ||
		(mode == ShareLock && es_lock_held(tag, ExclusiveLock));
}

/*
 * Take one lock, or the one that stands for all.  False where it would have to
 * wait and must not.
 */
static bool
take(Oid class, uint64 key, LOCKMODE mode, bool wait)
{
	LOCKTAG		tag;
	LockAcquireResult result;

	set_tag(&tag, class, key);
	if (es_held(&held) >= es_max_stream_locks && !is_held(&tag, mode))
	{
		if (!wait)
			return ConditionalLockRelationOid(es_catalog()->event,
											  ShareRowExclusiveLock);
		es_lock_log();
		return true;
	}
	result = LockAcquire(&tag, mode, false, !wait);
	if (result == LOCKACQUIRE_OK)
		es_held_add(&held);
	return result != LOCKACQUIRE_NOT_AVAIL;
}

/*
 * Lock a stream.  The caller has es.event locked in ROW EXCLUSIVE mode.
 */
bool
es_lock_stream(const text *stream, bool wait)
{
	uint64		key = hash_bytes_extended((const unsigned char *) VARDATA_ANY(stream),
										  VARSIZE_ANY_EXHDR(stream), 0);

	return take(es_catalog()->event, key, ExclusiveLock, wait);
}

/*
 * Add to a list the lock on the events with a tag, of one type or (NULL) of
 * any.
 */
void
es_tag_locks_add(EsTagLocks *list, const text *tag, const text *type, LOCKMODE mode)
{
	EsTagLock  *lock;
	uint64		seed = 0;

	if (list->n == list->size)
	{
		list->size = Max(2 * list->size, 16);
		list->locks = list->locks == NULL
			? palloc(sizeof(EsTagLock) * list->size)
			: repalloc_huge(list->locks, sizeof(EsTagLock) * list->size);
	}
	if (type)
		seed = hash_bytes_extended((const unsigned char *) VARDATA_ANY(type),
								   VARSIZE_ANY_EXHDR(type), 1);
	lock = &list->locks[list->n++];
	/* Only 48 bits make it into the lock's tag. */
	lock->key = hash_bytes_extended((const unsigned char *) VARDATA_ANY(tag),
									VARSIZE_ANY_EXHDR(tag), seed)
		& UINT64CONST(0xFFFFFFFFFFFF);
	lock->mode = mode;
}

/*
 * In the order of keys, and the stronger mode first.
 */
static int
compare_locks(const void *a, const void *b)
{
	const EsTagLock *x = (const EsTagLock *) a;
	const EsTagLock *y = (const EsTagLock *) b;

	if (x->key != y->key)
		return x->key < y->key ? -1 : 1;
	return y->mode - x->mode;
}

/*
 * How many locks of a list the transaction does not hold yet.
 */
static int
missing(const EsTagLocks *list)
{
	int			n = 0;

	for (int i = 0; i < list->n; i++)
	{
		LOCKTAG		tag;

		set_tag(&tag, es_catalog()->tag, list->locks[i].key);
		n += !is_held(&tag, list->locks[i].mode);
	}
	return n;
}

/*
 * Take the locks of a list, each key once in the strongest mode asked for.
 * More than may be held are not even begun with.  The caller has es.event
 * locked in ROW EXCLUSIVE mode.
 */
void
es_tag_locks_take(EsTagLocks *list)
{
	int			n = 0;

	if (list->n == 0)
		return;
	qsort(list->locks, list->n, sizeof(EsTagLock), compare_locks);
	for (int i = 0; i < list->n; i++)
		if (n == 0 || list->locks[n - 1].key != list->locks[i].key)
			list->locks[n++] = list->locks[i];
	list->n = n;
	if (es_held(&held) + n > es_max_stream_locks &&
		es_held(&held) + missing(list) > es_max_stream_locks)
	{
		es_lock_log();
		return;
	}
	for (int i = 0; i < n; i++)
		(void) take(es_catalog()->tag, list->locks[i].key, list->locks[i].mode, true);
}
