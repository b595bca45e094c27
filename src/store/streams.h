/*-------------------------------------------------------------------------
 * streams.h
 *	  Several streams that are appended to at once.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_STREAMS_H
#define ES_STORE_STREAMS_H

#include "store/append.h"

/*
 * Streams in the order of their names, which is the order they are locked in.
 */
typedef struct EsStreams
{
	int			n;
	EsStream   *streams;
} EsStreams;

extern int	es_compare_streams(const void *a, const void *b);
extern void es_streams_of(EsStreams *set, text **names, int n);
extern EsStream *es_streams_find(const EsStreams *set, text *name);
extern void es_streams_open(EsStreams *set);

#endif							/* ES_STORE_STREAMS_H */
