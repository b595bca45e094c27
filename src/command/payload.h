/*-------------------------------------------------------------------------
 * payload.h
 *	  Checking payloads, and turning errors into rejections.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMMAND_PAYLOAD_H
#define ES_COMMAND_PAYLOAD_H

#include "utils/jsonb.h"

typedef struct EsPayloadType EsPayloadType;

extern EsPayloadType *es_payload_type(Oid type);
extern void es_check_payload(const char *command, EsPayloadType *type, Jsonb *payload);
extern bool es_is_rejection(int sqlerrcode);

#endif							/* ES_COMMAND_PAYLOAD_H */
