/*-------------------------------------------------------------------------
 * streams.c
 *	  Several streams that are appended to at once.
 *
 * Whoever locks several locks them in the order of their names, so that two of
 * the kind do not wait for each other.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "es.h"
#include "miscadmin.h"
#include "store/streams.h"
#include "utils/builtins.h"

int
es_compare_streams(const void *a, const void *b)
{
	Datum		x = PointerGetDatum(((const EsStream *) a)->name);
	Datum		y = PointerGetDatum(((const EsStream *) b)->name);

	return es_compare_texts(&x, &y);
}

/*
 * Make a set of the streams with these names, of which some may be the same.
 */
void
es_streams_of(EsStreams *set, text **names, int n)
{
	set->n = 0;
	set->streams = palloc_extended(sizeof(EsStream) * Max(n, 1),
								   MCXT_ALLOC_HUGE | MCXT_ALLOC_ZERO);
	for (int i = 0; i < n; i++)
	{
		es_check_name("stream name", names[i]);
		set->streams[i].name = names[i];
	}
	qsort(set->streams, n, sizeof(EsStream), es_compare_streams);
	for (int i = 0; i < n; i++)
		if (set->n == 0 ||
			es_compare_streams(&set->streams[set->n - 1], &set->streams[i]) != 0)
			set->streams[set->n++] = set->streams[i];
}

/*
 * The stream of a name, or NULL.
 */
EsStream *
es_streams_find(const EsStreams *set, text *name)
{
	EsStream	key = {.name = name};

	return bsearch(&key, set->streams, set->n, sizeof(EsStream), es_compare_streams);
}

/*
 * Lock the streams and learn their versions.
 */
void
es_streams_open(EsStreams *set)
{
	for (int i = 0; i < set->n; i++)
	{
		CHECK_FOR_INTERRUPTS();
		es_stream_open(&set->streams[i], set->streams[i].name);
	}
}
