/*-------------------------------------------------------------------------
 * functions.h
 *	  Arguments that several SQL functions take.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_FUNCTIONS_H
#define ES_STORE_FUNCTIONS_H

#include "fmgr.h"
#include "store/append.h"

extern int64 es_expected_version(FunctionCallInfo fcinfo, int arg);
extern EsEvent *es_events_from_json(Jsonb *list, int *nevents);

#endif							/* ES_STORE_FUNCTIONS_H */
