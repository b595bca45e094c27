/*-------------------------------------------------------------------------
 * dedup.h
 *	  One command id, one effect.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_DEDUP_H
#define ES_STORE_DEDUP_H

#include "utils/jsonb.h"
#include "utils/uuid.h"

/*
 * What a command led to.
 */
typedef struct EsOutcome
{
	text	   *stream;
	int64		version;
	int64		position;		/* of the last event; 0 where events is 0 */
	int32		events;
	bool		duplicate;
} EsOutcome;

/*
 * A request that comes with an id: what it is, by its name, the stream it goes
 * to and a fingerprint of the rest.
 */
typedef struct EsRequest
{
	pg_uuid_t  *id;				/* or NULL: nothing is kept of it */
	const char *name;
	text	   *stream;
	int64		fingerprint;
} EsRequest;

extern int64 es_fingerprint(Jsonb *value, int64 seed);
extern int64 es_fingerprint_text(const text *value, int64 seed);
extern bool es_dedup_find(const EsRequest *request, EsOutcome *outcome);
extern void es_dedup_record(const EsRequest *request, const EsOutcome *outcome);
extern int64 es_dedup_prune(int64 max_count);

#endif							/* ES_STORE_DEDUP_H */
