/*-------------------------------------------------------------------------
 * hint.c
 *	  Where the newest event of a stream is, as far as somebody remembers.
 *
 * An appender needs the version of its stream.  To find it in the index on
 * (stream, version) costs as much as two of the three index entries that it
 * writes.  So appenders leave in shared memory which row they wrote last, and
 * at which version; the next one looks at that row alone.
 *
 * A hint is believed if the row is there, committed or our own, and is of this
 * stream and at this version.  It is the newest then, because:
 *
 *	- whoever appends holds the stream's lock to the end of the transaction, and
 *	  overwrites the hint before that.  So what a holder of the lock finds was
 *	  left by the last append to the stream, or is not of this stream;
 *	- of an append that was rolled back the row is not there, and the caller
 *	  looks into the index; had the table another file then (TRUNCATE), all
 *	  hints are void;
 *	- a stream has one event at a version, wherever a rewrite of the table
 *	  (VACUUM FULL) has moved it, and whatever took its place.
 *
 * An entry's two words are written one after the other and not locked.  A
 * mixture of two streams' words fails the test; one of two hints of the same
 * stream cannot be, for both words were written under the stream's lock.  The
 * lock manager's LWLocks order what one holder wrote before what the next one
 * reads.
 *
 * Statements that change the log past es_append() make all hints void (guard.c),
 * when they begin and when their transaction or subtransaction ends.  Where even
 * that is evaded, a hint can be too old.  Then the next append to the stream
 * fails at the unique index and takes the hint away, so that the one after it
 * looks into the index.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "common/hashfn.h"
#include "es.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/bufmgr.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "store/hint.h"

/*
 * Entries for each buffer of the server, a sixty-fourth of its memory, up to 64
 * MB.  There is room for one stream in an entry.
 */
#define PER_BUFFER		8
#define MAX_ENTRIES		(UINT64CONST(1) << 22)

/* The words of an entry have marks of the stream above what they say. */
#define ROW_BITS		48
#define VERSION_BITS	44
#define MASK(bits)		((UINT64CONST(1) << (bits)) - 1)

typedef struct Entry
{
	pg_atomic_uint64 row;
	pg_atomic_uint64 version;
} Entry;

/* Databases that share a generation. */
#define GENERATIONS		64

typedef struct Hints
{
	pg_atomic_uint64 generations[GENERATIONS];	/* hints of older ones are void */
	uint64		nentries;
	Entry		entries[FLEXIBLE_ARRAY_MEMBER];
} Hints;

/* NULL where the library was not preloaded. */
static Hints *hints = NULL;

/* Whether this transaction has made hints void; changed here alone. */
static bool voided = false;

static uint64
number_of_entries(void)
{
	return Min((uint64) NBuffers * PER_BUFFER, MAX_ENTRIES);
}

static Size
shmem_size(void)
{
	return add_size(offsetof(Hints, entries),
					mul_size(number_of_entries(), sizeof(Entry)));
}

void
es_hint_shmem_request(void)
{
	RequestAddinShmemSpace(shmem_size());
}

void
es_hint_shmem_init(void)
{
	bool		found;

	hints = ShmemInitStruct("es hints", shmem_size(), &found);
	if (found)
		return;
	for (int i = 0; i < GENERATIONS; i++)
		pg_atomic_init_u64(&hints->generations[i], 0);
	hints->nentries = number_of_entries();
	for (uint64 i = 0; i < hints->nentries; i++)
	{
		pg_atomic_init_u64(&hints->entries[i].row, 0);
		pg_atomic_init_u64(&hints->entries[i].version, 0);
	}
}

static inline pg_atomic_uint64 *
generation(void)
{
	return &hints->generations[MyDatabaseId % GENERATIONS];
}

/*
 * The hash of a stream of a log, which es.event stands for.  Streams of one name
 * in two logs are two, as they are before and after all hints were made void.
 */
static uint64
hash_of(const text *stream, Oid event)
{
	uint64		log = ((uint64) MyDatabaseId << 32) | event;

	return hash_bytes_extended((const unsigned char *) VARDATA_ANY(stream),
							   VARSIZE_ANY_EXHDR(stream),
							   hash_combine64(log, pg_atomic_read_u64(generation())));
}

static inline Entry *
entry_of(uint64 hash)
{
	return &hints->entries[hash % hints->nentries];
}

/*
 * A word of an entry: a value and the stream's mark; and whether it has that.
 */
static inline uint64
marked(uint64 hash, uint64 value, int bits)
{
	return (hash & ~MASK(bits)) | value;
}

static inline bool
is_marked(uint64 hash, uint64 word, int bits)
{
	return ((word ^ hash) & ~MASK(bits)) == 0;
}

/*
 * Which row the newest event of the stream is said to be, and at which version.
 * False where nobody remembers.
 */
bool
es_hint_get(const text *stream, ItemPointer row, int64 *version)
{
	uint64		hash;
	Entry	   *entry;
	uint64		r;
	uint64		v;

	if (hints == NULL)
		return false;
	hash = hash_of(stream, es_catalog()->event);
	entry = entry_of(hash);
	r = pg_atomic_read_u64(&entry->row);
	v = pg_atomic_read_u64(&entry->version);
	if (!is_marked(hash, r, ROW_BITS) || !is_marked(hash, v, VERSION_BITS))
		return false;
	ItemPointerSet(row, (BlockNumber) ((r & MASK(ROW_BITS)) >> 16),
				   (OffsetNumber) (r & MASK(16)));
	*version = (int64) (v & MASK(VERSION_BITS));
	return ItemPointerIsValid(row);
}

/*
 * The newest event of the stream is at a version, in a row.  The caller holds the
 * stream's lock and has just written it.
 */
void
es_hint_put(const text *stream, ItemPointer row, int64 version)
{
	uint64		hash = hash_of(stream, es_catalog()->event);
	Entry	   *entry = entry_of(hash);
	uint64		place = ((uint64) ItemPointerGetBlockNumber(row) << 16) |
		ItemPointerGetOffsetNumber(row);

	if ((uint64) version > MASK(VERSION_BITS))
		place = 0;
	pg_atomic_write_u64(&entry->row, marked(hash, place, ROW_BITS));
	pg_atomic_write_u64(&entry->version,
						marked(hash, (uint64) version & MASK(VERSION_BITS), VERSION_BITS));
}

/*
 * Forget the stream, or whoever has its entry.  Looks nothing up, for it is
 * called after errors.
 */
void
es_hint_take_away(const text *stream)
{
	const EsCatalog *catalog = es_catalog_cached();

	if (catalog)
		pg_atomic_write_u64(&entry_of(hash_of(stream, catalog->event))->row, 0);
}

static void
forget(void)
{
	if (hints)
		pg_atomic_fetch_add_u64(generation(), 1);
}

/*
 * The log is being changed past es_append(), once more in this transaction or,
 * unless "again", as it said before: make all hints void.
 */
void
es_hints_forget(bool again)
{
	if (again || !voided)
		forget();
	voided = true;
}

/*
 * What others have left since is void, too, when the change can be seen, or is
 * taken back: both are so before the locks are released.
 */
static void
xact_callback(XactEvent event, void *arg)
{
	if (!voided || (event != XACT_EVENT_COMMIT && event != XACT_EVENT_ABORT &&
					event != XACT_EVENT_PREPARE))
		return;
	forget();
	voided = false;
}

static void
subxact_callback(SubXactEvent event, SubTransactionId id,
				 SubTransactionId parent, void *arg)
{
	if (voided && event == SUBXACT_EVENT_ABORT_SUB)
		forget();
}

void
es_hint_init(void)
{
	RegisterXactCallback(xact_callback, NULL);
	RegisterSubXactCallback(subxact_callback, NULL);
}
