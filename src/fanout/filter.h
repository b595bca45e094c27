/*-------------------------------------------------------------------------
 * filter.h
 *	  The events that a channel or a subscription asks for.
 *-------------------------------------------------------------------------
 */
#ifndef ES_FANOUT_FILTER_H
#define ES_FANOUT_FILTER_H

#include "fmgr.h"

extern void es_check_filter(FunctionCallInfo fcinfo, int categories, int types);

#endif							/* ES_FANOUT_FILTER_H */
