/*-------------------------------------------------------------------------
 * hint.h
 *	  At which version a stream is, as far as somebody remembers.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_HINT_H
#define ES_STORE_HINT_H

extern void es_hint_shmem_request(void);
extern void es_hint_shmem_init(void);

extern int64 es_hint_get(const text *stream);
extern void es_hint_put(const text *stream, int64 version);

#endif							/* ES_STORE_HINT_H */
