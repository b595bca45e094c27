/*-------------------------------------------------------------------------
 * hint.h
 *	  Where the newest event of a stream is, as far as somebody remembers.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_HINT_H
#define ES_STORE_HINT_H

#include "storage/itemptr.h"

extern void es_hint_shmem_request(void);
extern void es_hint_shmem_init(void);
extern void es_hint_init(void);

extern bool es_hint_get(const text *stream, ItemPointer row, int64 *version);
extern void es_hint_put(const text *stream, ItemPointer row, int64 version);
extern void es_hint_take_away(const text *stream);
extern void es_hints_forget(bool again);

#endif							/* ES_STORE_HINT_H */
