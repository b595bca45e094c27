/*-------------------------------------------------------------------------
 * partition.h
 *	  Splitting streams among partitions.
 *
 * Part of the interface: consumers may compute it, and tables hold positions
 * by it.  It must never change.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_PARTITION_H
#define ES_STORE_PARTITION_H

#include "common/hashfn.h"
#include "utils/builtins.h"

/*
 * The partition of a stream among n, from 0 on: the 64-bit hash of the bytes
 * of its name, with seed 0, modulo n.
 */
static inline int
es_partition_of(const text *stream, int n)
{
	return (int) (hash_bytes_extended((const unsigned char *) VARDATA_ANY(stream),
									  VARSIZE_ANY_EXHDR(stream), 0) % (uint64) n);
}

#endif							/* ES_STORE_PARTITION_H */
