/*-------------------------------------------------------------------------
 * lease.h
 *	  Who holds which partitions of a subscription.
 *-------------------------------------------------------------------------
 */
#ifndef ES_FANOUT_LEASE_H
#define ES_FANOUT_LEASE_H

#include "fanout/subscription.h"
#include "utils/timestamp.h"

/*
 * A partition, and what a consumer that fetches does with it.
 */
typedef struct EsPartition
{
	int			number;
	int64		position;		/* all up to here is done with */
	int64		delivered;		/* up to here, the consumer has got events */
	int64		handed_out;		/* up to here, some consumer ever has */
	int			attempts;		/* of the first one behind position */
	int			batch;			/* events handed out last */
	int64		failing;		/* the event given back last, or 0 */
	int			failures;		/* how often */
	TimestampTz retry_at;		/* hand out nothing before, or 0 */
	char	   *consumer;		/* or NULL */
	TimestampTz lease_until;	/* 0 where nobody holds it */
	bool		retrying;		/* parked events of it are handed out again */

	bool		wanted;			/* the consumer's share */
	bool		surplus;		/* it holds it, and should not */
} EsPartition;

/*
 * The state of a subscription's consumers, as one of them sees it.
 */
typedef struct EsGroup
{
	const EsSubscription *subscription;
	text	   *consumer;		/* who looks */
	TimestampTz now;
	EsPartition *partitions;	/* by number */
	int			nmembers;
	uint64	   *members;		/* hashes of the active consumers, sorted */
	TimestampTz next_change;	/* when a lease or delay ends; or DT_NOEND */
} EsGroup;

extern void es_group_load(EsGroup *group);
extern void es_group_share_out(EsGroup *group);
extern void es_group_lock(EsGroup *group);
extern int	es_lock_leases(const EsSubscription *subscription, text *consumer,
						 EsPartition **partitions);
extern bool es_partition_is_busy(const EsPartition *p);

extern void es_waiter_begin(text *subscription, text *consumer);
extern void es_waiter_end(void);
extern void es_wake_consumers_at_commit(void);

extern void es_lease_shmem_request(void);
extern void es_lease_shmem_init(void);
extern void es_lease_init(void);

#endif							/* ES_FANOUT_LEASE_H */
