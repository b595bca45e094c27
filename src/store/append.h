/*-------------------------------------------------------------------------
 * append.h
 *	  Writing events: the one path into the log.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_APPEND_H
#define ES_STORE_APPEND_H

#include "store/lock.h"
#include "utils/array.h"
#include "utils/jsonb.h"

/*
 * A stream that this transaction has locked, its version and the position of
 * its newest event: both 0 where it does not exist yet.
 */
typedef struct EsStream
{
	text	   *name;
	text	   *category;
	int64		version;
	int64		position;
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
	EsStream   *stream;			/* or NULL: the one it is appended with */
} EsEvent;

/*
 * Called after events were written, by the statement that appends them: the
 * stream of those that name none, all being at their new versions, and the
 * position of the first.
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
extern text *es_category_of(const text *stream);
extern void es_check_object(const char *what, const Jsonb *value);
extern Jsonb *es_effective_metadata(Jsonb *metadata);
extern void es_stream_open(EsStream *stream, text *name);
extern bool es_stream_try_open(EsStream *stream, text *name);
extern void es_check_can_lock(const char *function);
extern void es_check_can_append(const char *function);
extern int	es_compare_texts(const void *a, const void *b);
extern void es_stream_expect(EsStream *stream, int64 expected_version);
extern void es_events_check(EsEvent *events, int nevents);
extern void es_events_tag_locks(EsTagLocks *list, const EsEvent *events,
								int nevents);
extern void es_events_lock_tags(const EsEvent *events, int nevents);
extern int64 es_stream_append(EsStream *stream, EsEvent *events, int nevents);

/*
 * While a user's function decides or folds, nothing may be appended: it would
 * change what is being decided on.  "what" names the function for the error.
 */
extern const char *es_deciding_begin(const char *what);
extern void es_deciding_end(const char *previous);
extern bool es_deciding(void);

#endif							/* ES_STORE_APPEND_H */
