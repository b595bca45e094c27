/*-------------------------------------------------------------------------
 * functions.h
 *	  Arguments that several SQL functions take, and rows that they return.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_FUNCTIONS_H
#define ES_STORE_FUNCTIONS_H

#include "access/tupdesc.h"
#include "fmgr.h"
#include "store/append.h"
#include "utils/uuid.h"

/*
 * The OUT parameters of an SQL function.  Declare it static; the rest of it is
 * filled in at first use.
 */
typedef struct EsResultType
{
	int			ncolumns;
	struct
	{
		const char *name;
		Oid			type;
	}			columns[5];
	TupleDesc	desc;
} EsResultType;

extern int64 es_expected_version(FunctionCallInfo fcinfo, int arg);
extern TupleDesc es_result_type(EsResultType *type);
extern Jsonb *es_empty_object(void);
extern Jsonb *es_object_argument(FunctionCallInfo fcinfo, int arg,
								 const char *what);
extern pg_uuid_t *es_command_id_argument(FunctionCallInfo fcinfo, int arg);
extern EsEvent *es_events_from_json(Jsonb *list, int *nevents, text ***streams);
extern Datum es_bigint_row(EsResultType *type, const int64 *columns);

#endif							/* ES_STORE_FUNCTIONS_H */
