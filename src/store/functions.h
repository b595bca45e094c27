/*-------------------------------------------------------------------------
 * functions.h
 *	  Arguments and results that several SQL functions have.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_FUNCTIONS_H
#define ES_STORE_FUNCTIONS_H

#include "fmgr.h"
#include "store/append.h"
#include "utils/uuid.h"

extern int64 es_expected_version(FunctionCallInfo fcinfo, int arg);
extern Jsonb *es_empty_object(void);
extern Jsonb *es_object_argument(FunctionCallInfo fcinfo, int arg,
								 const char *what);
extern pg_uuid_t *es_command_id_argument(FunctionCallInfo fcinfo, int arg);
extern EsEvent *es_events_from_json(Jsonb *list, int *nevents, text ***streams);
extern Datum es_bigint_row(FunctionCallInfo fcinfo, int n, const int64 *columns);

#endif							/* ES_STORE_FUNCTIONS_H */
