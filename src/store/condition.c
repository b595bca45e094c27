/*-------------------------------------------------------------------------
 * condition.c
 *	  Relying on no further event matching a query.
 *
 * Whoever relies on a query locks, to the end of the transaction, for each of
 * its items
 *
 *		with tags and types		one of its tags, of each of the types: EXCLUSIVE
 *		with tags alone			one of its tags, of any type: EXCLUSIVE
 *		with types alone		es.event: SHARE ROW EXCLUSIVE
 *
 * and looks after that.  Whoever appends an event, with or without a condition,
 * holds es.event in ROW EXCLUSIVE mode and, for each of the event's tags, the
 * tag of any type and the tag of its type: SHARE.
 *
 * Invariant: let T rely on a query, and let an event e of another transaction U
 * match it.  Then T's look saw e, or U appended e after T had ended.  Proof:
 * e matches an item.  Where that has types alone, U's ROW EXCLUSIVE conflicts
 * with T's lock.  Where it has tags, e has all of them, the one that T locked
 * among them, and is of one of the item's types, if it has any: so U's SHARE
 * lock on that tag, of e's type or of any, conflicts with T's.  Escalated locks
 * (lock.c) conflict with the ROW EXCLUSIVE of the other.  Both locks are held
 * to the end of their transactions, so one ended before the other was granted
 * its lock.  Where U ended first, it did so before T's look: a lock is released
 * after its transaction is no longer in progress for anybody, and T looks at
 * what is committed at that instant (SnapshotSelf), or with a snapshot taken
 * after its lock was granted.  Where T ended first, U got its lock, and so
 * wrote e, after that.  Both may rely on queries: then the same holds in both
 * directions, and one of them sees the other's events.
 *
 * That one tag of an item suffices keeps the number of locks small; that it is
 * the same for everybody keeps deadlocks away.  Two appenders whose conditions
 * cannot match each other's events share no lock but by a collision of hashes,
 * or where an item has types alone, or has several tags of which the events have
 * the one that is locked.
 *
 * A client decides on what es_read_matching() returned.  That reads up to the
 * settled position, so every event that it did not return stands behind the
 * position that it has read to, and a condition "after" that position, or after
 * the last event returned, will see it.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog.h"
#include "es.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "store/append.h"
#include "store/condition.h"
#include "store/table.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"

/* The columns of es.event and es.tag that are looked at here, from 1 on. */
#define EVENT_POSITION	1
#define EVENT_STREAM	4
#define EVENT_TYPE		6
#define TAG_POSITION	2

/*
 * Looking for events that match, and what is open for it.
 */
typedef struct Search
{
	Relation	event;
	Relation	tag;
	TupleTableSlot *event_slot;
	TupleTableSlot *tag_slot;
	TupleTableSlot *other_slot;
	Snapshot	unseen_by;		/* only events that this does not see; or NULL */
} Search;

/*
 * Take the lock on es.event of who relies on a query (or on none: NULL) and
 * may append.  It comes first in order, and in the mode that it needs.
 */
void
es_condition_lock_event(const EsQuery *query)
{
	bool		whole = false;

	for (int i = 0; query != NULL && i < query->nitems; i++)
		whole = whole || query->items[i].ntags == 0;
	if (whole)
		es_lock_log();
	else
		LockRelationOid(es_catalog()->event, RowExclusiveLock);
}

/*
 * Add the other locks of who relies on a query (or on none: NULL) to a list.
 */
void
es_condition_locks(const EsQuery *query, EsTagLocks *list)
{
	for (int i = 0; query != NULL && i < query->nitems; i++)
	{
		const EsQueryItem *item = &query->items[i];

		if (item->ntags == 0)
			continue;
		for (int j = 0; j < item->ntypes; j++)
			es_tag_locks_add(list, item->tags[0], item->types[j], ExclusiveLock);
		if (item->ntypes == 0)
			es_tag_locks_add(list, item->tags[0], NULL, ExclusiveLock);
	}
}

static void
search_begin(Search *s, Snapshot unseen_by)
{
	s->event = table_open(es_catalog()->event, AccessShareLock);
	s->tag = table_open(es_catalog()->tag, AccessShareLock);
	s->event_slot = table_slot_create(s->event, NULL);
	s->tag_slot = table_slot_create(s->tag, NULL);
	s->other_slot = table_slot_create(s->tag, NULL);
	s->unseen_by = unseen_by;
}

static void
search_end(Search *s)
{
	ExecDropSingleTupleTableSlot(s->other_slot);
	ExecDropSingleTupleTableSlot(s->tag_slot);
	ExecDropSingleTupleTableSlot(s->event_slot);
	table_close(s->tag, NoLock);
	table_close(s->event, NoLock);
}

/*
 * Whether the event in the slot is of the item's types, and is one that is
 * looked for.
 */
static bool
event_matches(Search *s, const EsQueryItem *item)
{
	bool		isnull;
	TransactionId xmin;

	if (!es_item_has_type(item, DatumGetTextPP(slot_getattr(s->event_slot, EVENT_TYPE, &isnull))))
		return false;
	if (s->unseen_by == NULL)
		return true;
	xmin = DatumGetTransactionId(slot_getsysattr(s->event_slot,
												 MinTransactionIdAttributeNumber, &isnull));
	return !TransactionIdIsCurrentTransactionId(xmin) &&
		!table_tuple_satisfies_snapshot(s->event, s->event_slot, s->unseen_by);
}

/*
 * Whether the event at a position has the item's other tags; then it is
 * fetched and looked at.
 */
static bool
position_matches(Search *s, const EsQueryItem *item, int64 position)
{
	ScanKeyData keys[2];

	for (int i = 1; i < item->ntags; i++)
	{
		ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ,
					PointerGetDatum(item->tags[i]));
		ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT8EQ,
					Int64GetDatum(position));
		if (!es_index_find(s->tag, es_catalog()->tag_key, keys, 2,
						   ForwardScanDirection, s->other_slot))
			return false;
	}
	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(position));
	return es_index_find(s->event, es_catalog()->event_key, keys, 1,
						 ForwardScanDirection, s->event_slot) &&
		event_matches(s, item);
}

/*
 * Find an event behind a position with an item's tags; by the first of them.
 */
static bool
find_tagged(Search *s, const EsQueryItem *item, int64 after)
{
	Relation	index = index_open(es_catalog()->tag_key, AccessShareLock);
	IndexScanDesc scan = es_index_beginscan(s->tag, index, SnapshotSelf, 2);
	ScanKeyData keys[2];
	bool		found = false;

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(item->tags[0]));
	ScanKeyInit(&keys[1], 2, BTGreaterStrategyNumber, F_INT8GT,
				Int64GetDatum(after));
	index_rescan(scan, keys, 2, NULL, 0);
	while (!found && index_getnext_slot(scan, ForwardScanDirection, s->tag_slot))
	{
		bool		isnull;

		CHECK_FOR_INTERRUPTS();
		found = position_matches(s, item,
								 DatumGetInt64(slot_getattr(s->tag_slot, TAG_POSITION, &isnull)));
	}
	index_endscan(scan);
	index_close(index, NoLock);
	return found;
}

/*
 * The same for an item of types alone: there is no way but to look at every
 * event behind the position.
 */
static bool
find_typed(Search *s, const EsQueryItem *item, int64 after)
{
	Relation	index = index_open(es_catalog()->event_key, AccessShareLock);
	IndexScanDesc scan = es_index_beginscan(s->event, index, SnapshotSelf, 1);
	ScanKeyData key;
	bool		found = false;

	ScanKeyInit(&key, 1, BTGreaterStrategyNumber, F_INT8GT, Int64GetDatum(after));
	index_rescan(scan, &key, 1, NULL, 0);
	while (!found && index_getnext_slot(scan, ForwardScanDirection, s->event_slot))
	{
		CHECK_FOR_INTERRUPTS();
		found = event_matches(s, item);
	}
	index_endscan(scan);
	index_close(index, NoLock);
	return found;
}

/*
 * Find an event behind a position that matches the query; returns the item it
 * matches, from 1 on, or 0 where there is none.
 */
static int
find(Search *s, const EsQuery *query, int64 after)
{
	for (int i = 0; i < query->nitems; i++)
	{
		const EsQueryItem *item = &query->items[i];

		if (item->ntags > 0 ? find_tagged(s, item, after) : find_typed(s, item, after))
			return i + 1;
	}
	return 0;
}

static char *
text_of(TupleTableSlot *slot, int column)
{
	bool		isnull;

	return TextDatumGetCString(slot_getattr(slot, column, &isnull));
}

static int64
position_of(TupleTableSlot *slot)
{
	bool		isnull;

	return DatumGetInt64(slot_getattr(slot, EVENT_POSITION, &isnull));
}

/*
 * In REPEATABLE READ and above, an event that matches and that our snapshot
 * does not see means that what we decided on has changed.  The query is locked.
 */
void
es_condition_check_seen(const EsQuery *query, int64 after)
{
	Search		s;

	if (!IsolationUsesXactSnapshot())
		return;
	search_begin(&s, GetTransactionSnapshot());
	if (find(&s, query, after) > 0)
		ereport(ERROR,
				(errcode(ERRCODE_T_R_SERIALIZATION_FAILURE),
				 errmsg("could not serialize access due to concurrent append"),
				 errdetail("An event of type \"%s\" at position " INT64_FORMAT " of stream \"%s\", which matches the query, was appended after this transaction began.",
						   text_of(s.event_slot, EVENT_TYPE), position_of(s.event_slot),
						   text_of(s.event_slot, EVENT_STREAM)),
				 errhint("Retry the transaction.")));
	search_end(&s);
}

/*
 * Refuse to go on where an event behind a position matches.  The query is
 * locked.
 */
void
es_condition_check(const EsQuery *query, int64 after)
{
	Search		s;
	int			item;

	es_condition_check_seen(query, after);
	search_begin(&s, NULL);
	item = find(&s, query, after);
	if (item > 0)
		ereport(ERROR,
				(errcode(ERRCODE_ES_CONDITION_FAILED),
				 errmsg("an event that matches the condition stands after position " INT64_FORMAT,
						after),
				 errdetail("It is of type \"%s\", at position " INT64_FORMAT " of stream \"%s\", and matches item %d.",
						   text_of(s.event_slot, EVENT_TYPE), position_of(s.event_slot),
						   text_of(s.event_slot, EVENT_STREAM), item),
				 errhint("Read what matches again, decide again, and retry with the position read to.")));
	search_end(&s);
}
