/*-------------------------------------------------------------------------
 * schedule.h
 *	  Commands that are submitted when they are due.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMMAND_SCHEDULE_H
#define ES_COMMAND_SCHEDULE_H

#include "nodes/pg_list.h"
#include "utils/jsonb.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

/*
 * A scheduled command that is due.
 */
typedef struct EsTimer
{
	pg_uuid_t  *id;
	char	   *command;
	char	   *aggregate_id;
	Jsonb	   *payload;
	Jsonb	   *metadata;		/* or NULL */
	int			attempts;		/* that failed so far */
} EsTimer;

extern List *es_timer_owners(TimestampTz *next);
extern TimestampTz es_timer_next(Oid owner);
extern EsTimer *es_timer_take(Oid owner);
extern void es_timer_submit(const EsTimer *timer);
extern void es_timer_failed(const EsTimer *timer, const ErrorData *error,
							bool final, TimestampTz retry_at);

#endif							/* ES_COMMAND_SCHEDULE_H */
