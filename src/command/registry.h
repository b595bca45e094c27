/*-------------------------------------------------------------------------
 * registry.h
 *	  The commands that es_submit() knows.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMMAND_REGISTRY_H
#define ES_COMMAND_REGISTRY_H

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
	text	   *event_type;
	EsCreates	creates;
	EsPayloadType *payload_type;	/* or NULL */
	FmgrInfo   *validate;		/* or NULL */
	EsSubmitters submitters;
} EsCommandType;

extern void es_command_registry_init(void);
extern EsCommandType *es_command_type(const char *name);
extern Oid	es_command_rowtype(void);

#endif							/* ES_COMMAND_REGISTRY_H */
