/*-------------------------------------------------------------------------
 * subscription.h
 *	  Subscriptions as they are defined.
 *-------------------------------------------------------------------------
 */
#ifndef ES_FANOUT_SUBSCRIPTION_H
#define ES_FANOUT_SUBSCRIPTION_H

#include "fmgr.h"
#include "store/read.h"
#include "utils/timestamp.h"

typedef struct EsSubscription
{
	text	   *name;
	int			partitions;
	int			max_deliveries;
	bool		filtered;
	EsFilter	filter;
} EsSubscription;

extern void es_subscription_load(EsSubscription *subscription, text *name);
extern text *es_name_argument(FunctionCallInfo fcinfo, int arg, const char *what);
extern int64 es_position_argument(FunctionCallInfo fcinfo, int arg);
extern int64 es_interval_argument(FunctionCallInfo fcinfo, int arg, const char *what,
								  int64 min_ms, int64 max_ms);

/* The longest time that anybody may ask for. */
#define ES_DAY_MS	INT64CONST(86400000)

/* The shortest lease. */
#define ES_MIN_LEASE_MS	10

#endif							/* ES_FANOUT_SUBSCRIPTION_H */
