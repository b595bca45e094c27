/*-------------------------------------------------------------------------
 * held.h
 *	  Counting the locks that a transaction holds.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_HELD_H
#define ES_STORE_HELD_H

/*
 * How many locks of some kind this transaction holds.  Declare it static and
 * zeroed.
 */
typedef struct EsHeld
{
	LocalTransactionId transaction; /* that the rest is about */
	int			n;
	struct EsHeldLevel *levels; /* the same by subtransaction, innermost first */
	bool		registered;
	struct EsHeld *next;
} EsHeld;

extern int	es_held(EsHeld *held);
extern void es_held_add(EsHeld *held);

#endif							/* ES_STORE_HELD_H */
