/*-------------------------------------------------------------------------
 * guard.c
 *	  Keeping the log append-only.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/trigger.h"
#include "es.h"
#include "fmgr.h"
#include "guc.h"
#include "utils/rel.h"

PG_FUNCTION_INFO_V1(es_refuse_change);

/*
 * Trigger that refuses to change what was appended, also for the owner of the
 * table, a superuser, and logical apply (the triggers are ENABLE ALWAYS).
 */
Datum
es_refuse_change(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const char *operation;

	if (!CALLED_AS_TRIGGER(fcinfo))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("es.refuse_change() must be called as a trigger")));

	if (TRIGGER_FIRED_BY_UPDATE(trigger->tg_event))
		operation = "UPDATE";
	else if (TRIGGER_FIRED_BY_DELETE(trigger->tg_event))
		operation = "DELETE";
	else
		operation = "TRUNCATE";

	if (!es_allow_destructive)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s on \"es.%s\" is refused: the log is append-only",
						operation, RelationGetRelationName(trigger->tg_relation)),
				 errhint("Append an event that corrects the mistake.  A superuser who must change the log can set es.allow_destructive.")));

	/* NULL from a row trigger would silently skip the row. */
	if (TRIGGER_FIRED_FOR_ROW(trigger->tg_event))
		return PointerGetDatum(TRIGGER_FIRED_BY_UPDATE(trigger->tg_event)
							   ? trigger->tg_newtuple : trigger->tg_trigtuple);
	return PointerGetDatum(NULL);
}
