/*-------------------------------------------------------------------------
 * dedup.h
 *	  One command id, one effect.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMMAND_DEDUP_H
#define ES_COMMAND_DEDUP_H

#include "utils/jsonb.h"
#include "utils/uuid.h"

/*
 * What a command led to.
 */
typedef struct EsOutcome
{
	text	   *stream;
	int64		version;
	int64		position;		/* of the last event; 0 where events is 0 */
	int32		events;
	bool		duplicate;
} EsOutcome;

extern bool es_dedup_find(pg_uuid_t *id, const char *command, text *stream,
						  Jsonb *payload, EsOutcome *outcome);
extern void es_dedup_record(pg_uuid_t *id, const char *command, Jsonb *payload,
							const EsOutcome *outcome);

#endif							/* ES_COMMAND_DEDUP_H */
