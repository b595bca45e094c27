/*-------------------------------------------------------------------------
 * state.h
 *	  The state of an aggregate: its stream's events, folded.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMMAND_STATE_H
#define ES_COMMAND_STATE_H

#include "command/aggregate.h"
#include "store/append.h"

/*
 * The state of a stream at a version, and the position of its event there.
 */
typedef struct EsState
{
	EsAggregate *aggregate;
	int64		version;
	int64		position;
	int64		folded;			/* events folded since a kept state */
	Jsonb	   *state;
} EsState;

extern void es_state_decide(EsState *state, EsAggregate *aggregate,
							const EsStream *stream);
extern void es_state_appended(EsState *state, const EsStream *stream);

#endif							/* ES_COMMAND_STATE_H */
