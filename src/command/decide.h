/*-------------------------------------------------------------------------
 * decide.h
 *	  Calling the validator and the decider of a command.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMMAND_DECIDE_H
#define ES_COMMAND_DECIDE_H

#include "command/registry.h"
#include "store/append.h"
#include "utils/jsonb.h"
#include "utils/uuid.h"

/*
 * A command on its way.
 */
typedef struct EsSubmission
{
	EsCommandType *type;
	text	   *id;
	Jsonb	   *payload;
	Jsonb	   *metadata;		/* or NULL */
	pg_uuid_t  *command_id;		/* or NULL */
	int64		expected_version;
	EsStream	stream;
} EsSubmission;

/*
 * What a decider returned: events, and for each the name of the stream it goes
 * to, NULL for that of the command.
 */
typedef struct EsDecision
{
	int			nevents;
	EsEvent    *events;
	text	  **streams;
} EsDecision;

extern void es_validate(const EsSubmission *s, Jsonb *state);
extern void es_decide(const EsSubmission *s, Jsonb *state, EsDecision *decision);

#endif							/* ES_COMMAND_DECIDE_H */
