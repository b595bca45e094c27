/*-------------------------------------------------------------------------
 * registry.h
 *	  The commands that es_submit() knows.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMMAND_REGISTRY_H
#define ES_COMMAND_REGISTRY_H

#include "command/call.h"
#include "command/grant.h"
#include "command/payload.h"
#include "fmgr.h"

typedef enum EsCreates
{
	ES_MAY_EXIST,
	ES_MUST_NOT_EXIST,
	ES_MUST_EXIST
} EsCreates;

/*
 * A command's definition.  Lives until the end of the transaction at least.
 */
typedef struct EsCommandType
{
	char	   *name;
	text	   *category;
	text	   *event_type;		/* NULL where there is a decider */
	EsCreates	creates;
	EsPayloadType *payload_type;	/* or NULL */
	Oid			validate;		/* or InvalidOid */
	EsCallPlan *validate_plan;
	Oid			decide;			/* or InvalidOid */
	char	   *search_path;	/* that both are called with */
	bool		locks_log;		/* its decider was seen to */
	bool		no_aggregate;	/* its category was seen to have none */
	EsSubmitters submitters;
} EsCommandType;

extern EsCommandType *es_command_type(const char *name);

#endif							/* ES_COMMAND_REGISTRY_H */
