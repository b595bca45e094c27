/*-------------------------------------------------------------------------
 * channel.h
 *	  NOTIFY channels, each with the events it tells of.
 *-------------------------------------------------------------------------
 */
#ifndef ES_FANOUT_CHANNEL_H
#define ES_FANOUT_CHANNEL_H

#include "nodes/pg_list.h"
#include "store/read.h"

/* The channel that is always there. */
#define ES_CHANNEL	"es"

/*
 * A channel, and its news of the batch being announced.
 */
typedef struct EsChannel
{
	char	   *name;
	bool		filtered;
	EsFilter	filter;
	int64		count;
	int64		first;
	int64		last;
} EsChannel;

extern void es_check_channel_name(const char *name);
extern List *es_channels(void);
extern void es_channel_announced(EsChannel *channel);
extern void es_channel_init(void);

#endif							/* ES_FANOUT_CHANNEL_H */
