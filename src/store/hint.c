/*-------------------------------------------------------------------------
 * hint.c
 *	  At which version a stream is, as far as somebody remembers.
 *
 * An appender finds the newest event of its stream in the index on (stream,
 * version).  A scan of that index takes in every entry of the stream on the
 * page it begins at, some hundred in a long stream, of which only the newest
 * is wanted; with a lower bound it takes in one or two.  So appenders leave
 * the version they wrote in shared memory, as a bound for the next.
 *
 * Nothing depends on a hint.  One that is too low makes the scan longer.  One
 * that is too high, because its append was rolled back or belongs to another
 * stream with the same hash, makes it find nothing, and the caller looks again
 * without a bound.  So there are no locks here, and no room for more streams
 * than one to an entry.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "common/hashfn.h"
#include "es.h"
#include "miscadmin.h"
#include "port/atomics.h"
#include "storage/ipc.h"
#include "storage/shmem.h"
#include "store/hint.h"

/* A megabyte: enough for the streams that are busy at a time. */
#define ENTRIES			(1 << 17)

/* An entry: the version, and above it the bits of the hash that mark it. */
#define VERSION_BITS	44
#define VERSION_MASK	((UINT64CONST(1) << VERSION_BITS) - 1)

static pg_atomic_uint64 *entries = NULL;

void
es_hint_shmem_request(void)
{
	RequestAddinShmemSpace(mul_size(ENTRIES, sizeof(pg_atomic_uint64)));
}

void
es_hint_shmem_init(void)
{
	bool		found;

	entries = ShmemInitStruct("es hints", ENTRIES * sizeof(pg_atomic_uint64), &found);
	if (found)
		return;
	for (int i = 0; i < ENTRIES; i++)
		pg_atomic_init_u64(&entries[i], 0);
}

/* Streams of one name in two databases are two. */
static uint64
hash_of(const text *stream)
{
	return hash_bytes_extended((const unsigned char *) VARDATA_ANY(stream),
							   VARSIZE_ANY_EXHDR(stream), MyDatabaseId);
}

/*
 * The version that somebody left for the stream, or 0.
 */
int64
es_hint_get(const text *stream)
{
	uint64		hash = hash_of(stream);
	uint64		entry = pg_atomic_read_u64(&entries[hash % ENTRIES]);

	return ((entry ^ hash) & ~VERSION_MASK) == 0 ? (int64) (entry & VERSION_MASK) : 0;
}

void
es_hint_put(const text *stream, int64 version)
{
	uint64		hash = hash_of(stream);

	if ((uint64) version <= VERSION_MASK)
		pg_atomic_write_u64(&entries[hash % ENTRIES],
							(hash & ~VERSION_MASK) | (uint64) version);
}
