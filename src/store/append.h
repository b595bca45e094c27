/*-------------------------------------------------------------------------
 * append.h
 *	  Writing events: the one path into the log.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_APPEND_H
#define ES_STORE_APPEND_H

#include "utils/array.h"
#include "utils/jsonb.h"

/*
 * A stream that this transaction has locked, and its version: 0 where it does
 * not exist yet.
 */
typedef struct EsStream
{
	text	   *name;
	text	   *category;
	int64		version;
	uint64		seen;			/* appends of this session so far */
} EsStream;

/*
 * An event to append.
 */
typedef struct EsEvent
{
	text	   *type;
	Jsonb	   *payload;
	Jsonb	   *metadata;		/* or NULL */
	ArrayType  *tags;			/* or NULL */
} EsEvent;

/*
 * Called after events were written, by the statement that appends them: their
 * stream, which is at its new version, and the position of the first.
 */
typedef void (*EsAfterAppend) (const EsStream *stream, const EsEvent *events,
							   int nevents, int64 first);

/* Set once when the library is loaded; the store knows no projections. */
extern EsAfterAppend es_after_append;

/* Set while something runs that must have no such effect. */
extern bool es_append_refused;

/* No particular version is expected. */
#define ES_ANY_VERSION	INT64CONST(-1)

extern void es_check_name(const char *what, const text *name);
extern void es_check_object(const char *what, const Jsonb *value);
extern void es_stream_open(EsStream *stream, text *name);
extern void es_stream_expect(const EsStream *stream, int64 expected_version);
extern int64 es_stream_append(EsStream *stream, EsEvent *events, int nevents);

#endif							/* ES_STORE_APPEND_H */
