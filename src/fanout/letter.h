/*-------------------------------------------------------------------------
 * letter.h
 *	  Events that no consumer could handle.
 *-------------------------------------------------------------------------
 */
#ifndef ES_FANOUT_LETTER_H
#define ES_FANOUT_LETTER_H

#include "fanout/lease.h"

/*
 * A parked event, the first of its stream, or one that is handed out again.
 */
typedef struct EsLetter
{
	int			partition;
	int64		position;
	text	   *stream;
	bool		parked;
	int			deliveries;		/* since es_retry_delivery() */
} EsLetter;

typedef struct EsLetters
{
	int			n;
	int			max;
	EsLetter   *letters;		/* by position */
} EsLetters;

extern void es_letters_load(EsLetters *letters, const EsSubscription *subscription);
extern bool es_letters_block(const EsLetters *letters, const text *stream,
							 int64 position);
extern void es_letter_park(EsLetters *letters, const EsSubscription *subscription,
						   EsLetter letter, const char *error);
extern void es_letter_park_behind(const EsSubscription *subscription, int partition,
								  int64 position, const text *stream);
extern void es_letter_delivered(const EsSubscription *subscription, int64 position);
extern void es_letters_acknowledge(const EsSubscription *subscription,
								   ArrayType *partitions, int64 position);
extern bool es_letter_find(EsLetter *letter, const EsSubscription *subscription,
						   int64 position);
extern void es_letters_take_back(const EsSubscription *subscription, int partition,
								 int64 position);

#endif							/* ES_FANOUT_LETTER_H */
