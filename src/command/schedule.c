/*-------------------------------------------------------------------------
 * schedule.c
 *	  Commands that are submitted when they are due: es_schedule() and
 *	  es_cancel(), and what the workers do with the table.
 *
 * States of a row of es.schedule:
 *
 *		pending -> (gone)		submitted: its events and the deletion of the
 *								row are one transaction, so exactly once
 *		pending -> pending		an attempt failed; next_at is put off
 *		pending -> failed		rejected (ES002), or failed too often (timer.c):
 *								next_at is NULL, the row stays to be seen
 *		pending, failed -> (gone)	es_cancel()
 *
 * The scheduler, a superuser, only looks who has something due.  The command
 * is submitted by a process that is connected as the role that scheduled it,
 * by calling es_submit() as any session of that role would: with its rights
 * and no others.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog.h"
#include "catalog/pg_type.h"
#include "command/payload.h"
#include "command/registry.h"
#include "command/schedule.h"
#include "es.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "store/append.h"
#include "store/functions.h"
#include "store/identity.h"
#include "store/watermark.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/lsyscache.h"

PG_FUNCTION_INFO_V1(es_cancel);
PG_FUNCTION_INFO_V1(es_schedule);

/* The arguments of es_schedule(). */
enum
{
	ARG_COMMAND,
	ARG_ID,
	ARG_PAYLOAD,
	ARG_DUE,
	ARG_COMMAND_ID,
	ARG_METADATA
};

static EsStatement insert_schedule = ES_SQL(
	"INSERT INTO es.schedule (id, command, aggregate_id, payload, due, next_at, metadata, owner) "
	"VALUES ($1, $2, $3, $4, $5, $5, $6, $7) ON CONFLICT DO NOTHING",
	7, UUIDOID, TEXTOID, TEXTOID, JSONBOID, TIMESTAMPTZOID, JSONBOID, REGROLEOID);
static EsStatement is_same_schedule = ES_SQL(
	"SELECT command = $2 AND aggregate_id = $3 AND payload = $4 AND owner = $5 "
	"FROM es.schedule WHERE id = $1",
	5, UUIDOID, TEXTOID, TEXTOID, JSONBOID, REGROLEOID);
static EsStatement owner_of_schedule = ES_SQL(
	"SELECT owner FROM es.schedule WHERE id = $1 FOR UPDATE", 1, UUIDOID);
static EsStatement delete_schedule = ES_SQL(
	"DELETE FROM es.schedule WHERE id = $1", 1, UUIDOID);
static EsStatement fail_schedule = ES_SQL(
	"UPDATE es.schedule SET attempts = $2, next_at = $3, error_at = clock_timestamp(), "
	"  error_sqlstate = $4, error = $5 WHERE id = $1",
	5, UUIDOID, INT4OID, TIMESTAMPTZOID, TEXTOID, TEXTOID);

/* Jumps from owner to owner in the index, however many commands each has. */
static EsStatement select_owners = ES_SQL(
	"WITH RECURSIVE o AS ("
	" (SELECT owner, next_at FROM es.schedule WHERE next_at IS NOT NULL "
	"  ORDER BY owner, next_at LIMIT 1) "
	" UNION ALL "
	" SELECT n.owner, n.next_at FROM o CROSS JOIN LATERAL ("
	"  SELECT s.owner, s.next_at FROM es.schedule s "
	"  WHERE s.next_at IS NOT NULL AND s.owner > o.owner "
	"  ORDER BY s.owner, s.next_at LIMIT 1) n) "
	"SELECT o.owner::oid, o.next_at FROM o JOIN pg_roles r ON r.oid = o.owner",
	0, InvalidOid);
static EsStatement select_next = ES_SQL(
	"SELECT next_at FROM es.schedule WHERE owner = $1 AND next_at IS NOT NULL "
	"ORDER BY next_at LIMIT 1",
	1, REGROLEOID);
static EsStatement take_due = ES_SQL(
	"SELECT id, command, aggregate_id, payload, metadata, attempts FROM es.schedule "
	"WHERE owner = $1 AND next_at <= $2 ORDER BY next_at LIMIT 1 FOR UPDATE SKIP LOCKED",
	2, REGROLEOID, TIMESTAMPTZOID);

/*
 * The time of an argument, which must be one that comes.
 */
static Datum
due_argument(FunctionCallInfo fcinfo)
{
	if (PG_ARGISNULL(ARG_DUE))
		ereport(ERROR,
				(errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
				 errmsg("the time of a scheduled command must not be null"),
				 errdetail("It is NULL."),
				 errhint("To submit it at once use es_submit().")));
	if (TIMESTAMP_NOT_FINITE(PG_GETARG_TIMESTAMPTZ(ARG_DUE)))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the time of a scheduled command must be finite"),
				 errdetail("It is infinite, so that the command would be submitted at once or never."),
				 errhint("Give the time when it is due.")));
	return PG_GETARG_DATUM(ARG_DUE);
}

/*
 * What can be known to be wrong already is said now, and not when it is due.
 */
static void
check_arguments(FunctionCallInfo fcinfo, Jsonb *payload)
{
	EsCommandType *type;

	es_check_name("command name",
				  PG_ARGISNULL(ARG_COMMAND) ? NULL : PG_GETARG_TEXT_PP(ARG_COMMAND));
	type = es_command_type(text_to_cstring(PG_GETARG_TEXT_PP(ARG_COMMAND)));
	es_check_may_submit(&type->submitters, type->name);
	es_check_name("aggregate id",
				  PG_ARGISNULL(ARG_ID) ? NULL : PG_GETARG_TEXT_PP(ARG_ID));
	if (type->payload_type)
		es_check_payload(type->name, type->payload_type, payload);
	es_check_worker_role(GetUserId(), "schedule a command",
						 "A worker connects as the role that scheduled it.");
}

/*
 * The id is taken: fine, if it is by the same command.
 */
static void
check_same(Datum *insert)
{
	Datum		values[5] = {insert[0], insert[1], insert[2], insert[3], insert[6]};
	bool		isnull;

	if (es_run(&is_same_schedule, values, NULL) == 1 &&
		DatumGetBool(es_spi_value(0, 1, &isnull)))
		return;
	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("command id %s was used for another scheduled command",
					DatumGetCString(DirectFunctionCall1(uuid_out, insert[0]))),
			 errdetail("That waits with another name, aggregate, payload or owner."),
			 errhint("Give every command an id of its own, and repeat it only to retry the same command.")));
}

/*
 * es_schedule(command, id, payload, due, command_id, metadata)
 *
 * Let a command be submitted at a time, or at once if that has passed, as the
 * calling role.  Returns the id under which it is submitted, which is
 * command_id or a new one; the same command_id again schedules nothing more.
 * The session's es.metadata go along.  Errors: ES003 unknown command; 42501
 * not the caller's to submit; ES002 for a payload that does not fit; 22023 and
 * 22004 on bad arguments, also for a role that no worker can connect as; 23505
 * where the command_id stands for another command.
 */
Datum
es_schedule(PG_FUNCTION_ARGS)
{
	Jsonb	   *payload = es_object_argument(fcinfo, ARG_PAYLOAD, "payload");
	Jsonb	   *metadata;
	Datum		values[7];
	char		nulls[] = "       ";
	EsSpi		spi;

	es_check_can_lock("es_schedule()");
	values[4] = due_argument(fcinfo);
	check_arguments(fcinfo, payload);
	es_identity_establish();

	metadata = es_effective_metadata(PG_ARGISNULL(ARG_METADATA) ? NULL
									 : PG_GETARG_JSONB_P(ARG_METADATA));
	values[0] = PG_ARGISNULL(ARG_COMMAND_ID) ? DirectFunctionCall1(gen_random_uuid, (Datum) 0)
		: PG_GETARG_DATUM(ARG_COMMAND_ID);
	values[1] = PG_GETARG_DATUM(ARG_COMMAND);
	values[2] = PG_GETARG_DATUM(ARG_ID);
	values[3] = JsonbPGetDatum(payload);
	values[5] = JsonbPGetDatum(metadata);
	if (metadata == NULL)
		nulls[5] = 'n';
	values[6] = ObjectIdGetDatum(GetUserId());

	es_spi_begin(&spi);
	if (es_run(&insert_schedule, values, nulls) == 0)
		check_same(values);
	es_spi_end(&spi);
	es_timers_wake_at_commit();
	PG_RETURN_DATUM(values[0]);
}

/*
 * es_cancel(id): take a scheduled command back, or a failed one away.  False
 * where there is none, because it was submitted or never scheduled.  Waits for
 * one that is just being submitted.  Only who could act as the role that
 * scheduled it may.
 */
Datum
es_cancel(PG_FUNCTION_ARGS)
{
	Oid			user = GetUserId();
	Datum		id;
	bool		found;
	bool		isnull;
	EsSpi		spi;

	if (PG_ARGISNULL(0))
		PG_RETURN_BOOL(false);
	id = PG_GETARG_DATUM(0);
	es_spi_begin(&spi);
	found = es_run(&owner_of_schedule, &id, NULL) == 1;
	if (found && !has_privs_of_role(user, DatumGetObjectId(es_spi_value(0, 1, &isnull))))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("must be owner of scheduled command %s",
						DatumGetCString(DirectFunctionCall1(uuid_out, id))),
				 errdetail("Its owner is the role that scheduled it."),
				 errhint("SET ROLE to that role, or let a member of it cancel the command.")));
	if (found)
		(void) es_run(&delete_schedule, &id, NULL);
	es_spi_end(&spi);
	PG_RETURN_BOOL(found);
}

/*
 * The roles that have a command due, as a list of oids in the current context,
 * and when the next of the other roles' is.
 */
List *
es_timer_owners(TimestampTz *next)
{
	MemoryContext context = CurrentMemoryContext;
	TimestampTz now = GetCurrentTimestamp();
	List	   *owners = NIL;
	EsSpi		spi;
	uint64		n;

	*next = DT_NOEND;
	es_spi_begin(&spi);
	n = es_run(&select_owners, NULL, NULL);
	for (uint64 i = 0; i < n; i++)
	{
		bool		isnull;
		Oid			owner = DatumGetObjectId(es_spi_value(i, 1, &isnull));
		TimestampTz next_at = DatumGetTimestampTz(es_spi_value(i, 2, &isnull));
		MemoryContext old = MemoryContextSwitchTo(context);

		if (next_at <= now)
			owners = lappend_oid(owners, owner);
		else
			*next = Min(*next, next_at);
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);
	return owners;
}

/*
 * When the next command of a role is due; DT_NOEND where it has none.
 */
TimestampTz
es_timer_next(Oid owner)
{
	Datum		key = ObjectIdGetDatum(owner);
	TimestampTz next = DT_NOEND;
	bool		isnull;
	EsSpi		spi;

	es_spi_begin(&spi);
	if (es_run(&select_next, &key, NULL) == 1)
		next = DatumGetTimestampTz(es_spi_value(0, 1, &isnull));
	es_spi_end(&spi);
	return next;
}

/*
 * Lock the command of a role that has been due for longest, and return it in
 * the current context; NULL where none is, or others have them.
 */
EsTimer *
es_timer_take(Oid owner)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[2] = {ObjectIdGetDatum(owner), TimestampTzGetDatum(GetCurrentTimestamp())};
	EsTimer    *timer = NULL;
	EsSpi		spi;

	es_spi_begin(&spi);
	if (es_run(&take_due, values, NULL) == 1)
	{
		bool		isnull;
		Datum		metadata = es_spi_value(0, 5, &isnull);
		bool		no_metadata = isnull;
		MemoryContext old = MemoryContextSwitchTo(context);

		timer = palloc0(sizeof(EsTimer));
		timer->id = palloc(UUID_LEN);
		memcpy(timer->id, DatumGetUUIDP(es_spi_value(0, 1, &isnull)), UUID_LEN);
		timer->command = es_spi_text(0, 2);
		timer->aggregate_id = es_spi_text(0, 3);
		timer->payload = DatumGetJsonbPCopy(es_spi_value(0, 4, &isnull));
		timer->metadata = no_metadata ? NULL : DatumGetJsonbPCopy(metadata);
		timer->attempts = DatumGetInt32(es_spi_value(0, 6, &isnull));
		MemoryContextSwitchTo(old);
	}
	es_spi_end(&spi);
	return timer;
}

/*
 * Call es_submit() as the session's user.
 */
static void
call_submit(const EsTimer *timer)
{
	static const Oid types[] = {TEXTOID, TEXTOID, JSONBOID, UUIDOID, JSONBOID};
	Datum		values[5];
	char		nulls[] = "     ";
	char	   *sql = psprintf("SELECT %s($1, $2, $3, $4, NULL, $5)",
							   quote_qualified_identifier(get_namespace_name(es_catalog()->schema),
														  "es_submit"));

	values[0] = CStringGetTextDatum(timer->command);
	values[1] = CStringGetTextDatum(timer->aggregate_id);
	values[2] = JsonbPGetDatum(timer->payload);
	values[3] = UUIDPGetDatum(timer->id);
	values[4] = JsonbPGetDatum(timer->metadata);
	if (timer->metadata == NULL)
		nulls[4] = 'n';
	if (SPI_connect() != SPI_OK_CONNECT)
		elog(ERROR, "SPI_connect failed");
	if (SPI_execute_with_args(sql, lengthof(values), (Oid *) types, values, nulls,
							  false, 0) != SPI_OK_SELECT)
		elog(ERROR, "SPI_execute_with_args failed");
	if (SPI_finish() != SPI_OK_FINISH)
		elog(ERROR, "SPI_finish failed");
}

/*
 * Submit a command that es_timer_take() locked, and take it off the schedule.
 */
void
es_timer_submit(const EsTimer *timer)
{
	Datum		key = UUIDPGetDatum(timer->id);
	EsSpi		spi;

	call_submit(timer);
	es_spi_begin(&spi);
	(void) es_run(&delete_schedule, &key, NULL);
	es_spi_end(&spi);
}

/*
 * An attempt failed, and its transaction is aborted: put the next one off, or
 * give up if it was the final one.
 */
void
es_timer_failed(const EsTimer *timer, const ErrorData *error, bool final,
				TimestampTz retry_at)
{
	Datum		values[5];
	char		nulls[] = "     ";
	EsSpi		spi;

	values[0] = UUIDPGetDatum(timer->id);
	values[1] = Int32GetDatum(timer->attempts + 1);
	values[2] = TimestampTzGetDatum(retry_at);
	if (final)
		nulls[2] = 'n';
	values[3] = CStringGetTextDatum(unpack_sql_state(error->sqlerrcode));
	values[4] = CStringGetTextDatum(error->detail
									? psprintf("%s (%s)", error->message, error->detail)
									: error->message);
	es_spi_begin(&spi);
	(void) es_run(&fail_schedule, values, nulls);
	es_spi_end(&spi);
	es_timers_wake_at_commit();
	if (final)
		ereport(LOG,
				(errmsg("scheduled command \"%s\" on \"%s\" failed: %s",
						timer->command, timer->aggregate_id, error->message),
				 errhint("It is not tried again; see es_schedules.")));
}
