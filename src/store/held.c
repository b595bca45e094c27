/*-------------------------------------------------------------------------
 * held.c
 *	  Counting the locks that a transaction holds.
 *
 * The lock manager would have to be asked for its whole table.  A rollback to a
 * savepoint releases the locks that were taken since, so they are counted by
 * subtransaction: a session that imports a million rows, each in an exception
 * block, must not be taken for one that holds a million locks.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "es.h"
#include "storage/lock.h"
#include "store/held.h"
#include "utils/memutils.h"

/* In TopTransactionContext: a subtransaction may end and its locks remain. */
typedef struct EsHeldLevel
{
	SubTransactionId id;
	int			n;
	struct EsHeldLevel *outer;
} EsHeldLevel;

/* All that were used; grows in es_held_add(). */
static EsHeld *all = NULL;

/*
 * The innermost subtransaction with locks has ended: its parent has them now.
 */
static void
merge(EsHeld *held, SubTransactionId parent)
{
	EsHeldLevel *level = held->levels;

	if (level->outer && level->outer->id == parent)
	{
		level->outer->n += level->n;
		held->levels = level->outer;
	}
	else
		level->id = parent;
}

static void
forget(EsHeld *held)
{
	held->n -= held->levels->n;
	held->levels = held->levels->outer;
}

static void
subxact_callback(SubXactEvent event, SubTransactionId id,
				 SubTransactionId parent, void *arg)
{
	if (event != SUBXACT_EVENT_COMMIT_SUB && event != SUBXACT_EVENT_ABORT_SUB)
		return;
	for (EsHeld *held = all; held != NULL; held = held->next)
	{
		if (held->transaction != ES_MY_LXID || held->levels == NULL ||
			held->levels->id != id)
			continue;
		if (event == SUBXACT_EVENT_COMMIT_SUB)
			merge(held, parent);
		else
			forget(held);
	}
}

/*
 * How many locks the transaction holds.
 */
int
es_held(EsHeld *held)
{
	if (held->transaction != ES_MY_LXID)
	{
		held->transaction = ES_MY_LXID;
		held->n = 0;
		held->levels = NULL;
	}
	return held->n;
}

/*
 * It holds one more.
 */
void
es_held_add(EsHeld *held)
{
	SubTransactionId id = GetCurrentSubTransactionId();

	if (!held->registered)
	{
		if (all == NULL)
			RegisterSubXactCallback(subxact_callback, NULL);
		held->registered = true;
		held->next = all;
		all = held;
	}
	(void) es_held(held);
	if (held->levels == NULL || held->levels->id != id)
	{
		EsHeldLevel *level = MemoryContextAlloc(TopTransactionContext,
												sizeof(EsHeldLevel));

		level->id = id;
		level->n = 0;
		level->outer = held->levels;
		held->levels = level;
	}
	held->levels->n++;
	held->n++;
}
