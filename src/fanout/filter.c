/*-------------------------------------------------------------------------
 * filter.c
 *	  The events that a channel or a subscription asks for.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "executor/tuptable.h"
#include "fanout/filter.h"
#include "store/append.h"
#include "store/table.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/rel.h"

static EsStatement find_command = ES_SQL(
	"SELECT FROM es.command_type WHERE category = $1 LIMIT 1", 1, TEXTOID);

static bool
category_has_events(text *category)
{
	Relation	rel = table_open(es_catalog()->event, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ScanKeyData key;
	bool		found;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(category));
	found = es_index_find(rel, es_catalog()->event_category, &key, 1,
						  ForwardScanDirection, slot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
	return found;
}

static bool
category_has_commands(text *category)
{
	Datum		key = PointerGetDatum(category);
	bool		found;
	EsSpi		spi;

	es_spi_begin(&spi);
	found = es_run(&find_command, &key, NULL) > 0;
	es_spi_end(&spi);
	return found;
}

/*
 * Check a list of names, which may be NULL for "all of them".  An empty list
 * would stand for nothing at all, which is never meant.
 */
static void
check_names(FunctionCallInfo fcinfo, int arg, const char *what, const char *list,
			bool categories)
{
	Datum	   *values;
	bool	   *nulls;
	int			n;

	if (PG_ARGISNULL(arg))
		return;
	deconstruct_array(PG_GETARG_ARRAYTYPE_P(arg), TEXTOID, -1, false,
					  TYPALIGN_INT, &values, &nulls, &n);
	if (n == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the list of %s must not be empty", list),
				 errhint("Give NULL for all of them.")));
	for (int i = 0; i < n; i++)
		es_check_name(what, nulls[i] ? NULL : DatumGetTextPP(values[i]));
	for (int i = 0; categories && i < n; i++)
	{
		text	   *name = DatumGetTextPP(values[i]);

		if (!category_has_events(name) && !category_has_commands(name))
			ereport(NOTICE,
					(errmsg("category \"%s\" has neither events nor commands yet",
							text_to_cstring(name))));
	}
}

/*
 * Check the categories and types among the arguments of a function.  A
 * category that nobody has heard of is allowed, with a notice.
 */
void
es_check_filter(FunctionCallInfo fcinfo, int categories, int types)
{
	check_names(fcinfo, types, "event type", "event types", false);
	check_names(fcinfo, categories, "category", "categories", true);
}
