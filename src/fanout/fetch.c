/*-------------------------------------------------------------------------
 * fetch.c
 *	  es_fetch(): handing out events to the consumers of a subscription.
 *
 * A call looks first, without a lock, whether there is anything to hand out,
 * and takes the locks of its partitions only when there is.  So a call that
 * waits holds no lock, and the condition variable that the scheduler signals
 * when the settled position has moved lets it look again.
 *
 * What was handed out and not acknowledged is handed out again by the next
 * call, of the same consumer or of the next one that holds the partition.  The
 * consumer may have been started anew and know nothing of an earlier call, so
 * what it acknowledges is only ever what the last one gave it.  As long as
 * handing out again brings no progress, fewer and fewer at a time: an event that
 * kills its consumer is alone in the end, and it is the one that is parked
 * then.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/stratnum.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "executor/executor.h"
#include "fanout/letter.h"
#include "fanout/lease.h"
#include "fanout/subscription.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "storage/condition_variable.h"
#include "storage/ipc.h"
#include "store/identity.h"
#include "store/partition.h"
#include "store/scan.h"
#include "store/table.h"
#include "store/watermark.h"
#include "tcop/utility.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(es_fetch);

/* The columns of the result around those of es.event. */
#define OUT_PARTITION	0
#define OUT_EVENT		1
#define OUT_DELIVERIES	(OUT_EVENT + ES_EVENT_NATTS)
#define OUT_COLUMNS		(OUT_DELIVERIES + 1)

/* A call that waits sees this often whether its client is still there. */
#define CHECK_CLIENT_MS	1000

/* Partitions that others have locked are tried again after this time. */
#define LOCKED_RETRY_MS	50

/*
 * Events to go through, for each that may be handed out, once there are some:
 * what one partition may not have yet must not cost the whole log.
 */
#define SCAN_FACTOR		16

/* What a call hands out of a partition. */
typedef struct Portion
{
	bool		open;			/* events may be handed out */
	bool		again;			/* the first ones have been before */
	int			limit;			/* events, at most */
	int			count;			/* events handed out */
	int			redelivered;	/* of these, handed out before */
	int64		first;
	int64		last;
	int64		old_handed_out;
	int64		clear_to;		/* nothing for us up to here, in this call */
} Portion;

typedef struct Fetch
{
	EsSubscription subscription;
	text	   *consumer;
	int			max_count;
	int64		lease_ms;
	EsGroup		group;
	EsLetters	letters;
	Portion    *portions;		/* by partition */
	int			count;			/* events handed out */
	bool		locked;			/* we hold the locks, and may write */
	ReturnSetInfo *result;
} Fetch;

static EsStatement save_partition = ES_SQL(
	"UPDATE es.subscription_partition SET position = $3, delivered = $4, attempts = $5, "
	"  batch = $6, failing = nullif($7, 0), failures = $8, "
	"  error = CASE WHEN $7 = 0 THEN NULL ELSE error END, retry_at = CASE WHEN $9 THEN NULL ELSE retry_at END, "
	"  redeliveries = redeliveries + $10, consumer = $11, handed_out = $13, "
	"  lease_until = clock_timestamp() + make_interval(secs => $12) "
	"WHERE subscription = $1 AND partition = $2",
	13, TEXTOID, INT4OID, INT8OID, INT8OID, INT4OID, INT4OID, INT8OID, INT4OID,
	BOOLOID, INT8OID, TEXTOID, FLOAT8OID, INT8OID);
static EsStatement release_partition = ES_SQL(
	"UPDATE es.subscription_partition SET consumer = NULL, lease_until = NULL, delivered = position "
	"WHERE subscription = $1 AND partition = $2", 2, TEXTOID, INT4OID);
static EsStatement save_consumer = ES_SQL(
	"INSERT INTO es.subscription_consumer AS c (subscription, consumer, active_until, unacknowledged) "
	"VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3), $4) "
	"ON CONFLICT (subscription, consumer) DO UPDATE "
	"  SET active_until = excluded.active_until, unacknowledged = excluded.unacknowledged "
	"RETURNING c.xmax = 0",
	4, TEXTOID, TEXTOID, FLOAT8OID, INT4ARRAYOID);
static EsStatement forget_consumers = ES_SQL(
	"DELETE FROM es.subscription_consumer WHERE (subscription, consumer) IN "
	"  (SELECT subscription, consumer FROM es.subscription_consumer "
	"   WHERE subscription = $1 AND active_until < clock_timestamp() - interval '1 day' "
	"   FOR UPDATE SKIP LOCKED)", 1, TEXTOID);

/*
 * Put an event into the result.
 */
static void
emit(Fetch *f, int partition, TupleTableSlot *event, int deliveries)
{
	Datum		values[OUT_COLUMNS];
	bool		nulls[OUT_COLUMNS] = {false};

	slot_getallattrs(event);
	values[OUT_PARTITION] = Int32GetDatum(partition);
	memcpy(&values[OUT_EVENT], event->tts_values, ES_EVENT_NATTS * sizeof(Datum));
	memcpy(&nulls[OUT_EVENT], event->tts_isnull, ES_EVENT_NATTS * sizeof(bool));
	values[OUT_DELIVERIES] = Int32GetDatum(deliveries);
	tuplestore_putvalues(f->result->setResult, f->result->setDesc, values, nulls);
	f->count++;
}

/*
 * How many events to hand out of a partition in which some were handed out
 * before: less and less as long as there is no progress, at the last attempt
 * one, and after progress more again.
 */
static int
limit_of(const Fetch *f, const EsPartition *p)
{
	if (p->attempts == 0)
		return p->batch > PG_INT32_MAX / 2 ? PG_INT32_MAX : Max(p->batch * 2, 1);
	if (p->attempts >= f->subscription.max_deliveries - 1)
		return 1;
	return p->attempts == 1 ? p->batch : Max(p->batch / 2, 1);
}

/*
 * Decide how much each partition may hand out.
 */
static void
open_portions(Fetch *f)
{
	for (int i = 0; i < f->subscription.partitions; i++)
	{
		EsPartition *p = &f->group.partitions[i];
		Portion    *portion = &f->portions[i];

		portion->open = p->wanted && p->retry_at <= f->group.now;
		portion->again = p->handed_out > p->position;
		portion->limit = f->max_count;
		portion->count = portion->redelivered = 0;
		portion->old_handed_out = p->handed_out;
		if (portion->again)
		{
			int			limit = limit_of(f, p);

			portion->limit = Min(portion->limit, limit);
		}
	}
}

/*
 * The event that a partition begins with was handed out too often: park it.
 */
static void
park_first(Fetch *f, EsPartition *p, Portion *portion, TupleTableSlot *event,
		   int64 position)
{
	bool		isnull;
	EsLetter	letter;

	letter.partition = p->number;
	letter.position = position;
	letter.stream = DatumGetTextPCopy(slot_getattr(event, ES_EVENT_STREAM, &isnull));
	letter.deliveries = p->attempts;
	es_letter_park(&f->letters, &f->subscription, letter,
				   psprintf("not acknowledged after %d deliveries", p->attempts));
	p->position = position;
	p->attempts = 0;
	portion->again = p->handed_out > position;
	portion->limit = portion->again ? 2 : f->max_count;
}

/*
 * How often an event is handed out with this time, as far as we know.
 */
static int
deliveries_of(const EsPartition *p, const Portion *portion, int64 position)
{
	int			n = position <= portion->old_handed_out ? Max(p->attempts + 1, 2) : 1;

	return position == p->failing ? Max(n, p->failures + 1) : n;
}

/*
 * Hand out an event, or find out why not.  Returns false where there is no use
 * in going on.
 */
static bool
hand_out(Fetch *f, TupleTableSlot *event, int64 position)
{
	bool		isnull;
	text	   *stream = DatumGetTextPP(slot_getattr(event, ES_EVENT_STREAM, &isnull));
	int			number = es_partition_of(stream, f->subscription.partitions);
	EsPartition *p = &f->group.partitions[number];
	Portion    *portion = &f->portions[number];

	if (!portion->open || position <= p->position || portion->count >= portion->limit)
		return true;
	if (es_letters_block(&f->letters, stream, position))
	{
		if (f->locked)
			es_letter_park_behind(&f->subscription, number, position, stream);
		return true;
	}
	if (!f->locked)
	{
		f->count++;
		return false;
	}
	if (portion->count == 0 && portion->again && p->batch == 1 &&
		p->attempts >= f->subscription.max_deliveries)
	{
		park_first(f, p, portion, event, position);
		return true;
	}

	emit(f, number, event, deliveries_of(p, portion, position));
	if (portion->count++ == 0)
		portion->first = position;
	portion->last = position;
	if (position <= portion->old_handed_out)
		portion->redelivered++;
	return f->count < f->max_count;
}

/*
 * Where to begin: behind the position of the open partition that is last.
 */
static int64
scan_from(const Fetch *f)
{
	int64		from = PG_INT64_MAX;

	for (int i = 0; i < f->subscription.partitions; i++)
	{
		int64		position = f->group.partitions[i].position;

		if (!f->locked)
			position = Max(position, f->portions[i].clear_to);
		if (f->portions[i].open)
			from = Min(from, position);
	}
	return from;
}

/*
 * Go through the log as far as there may be events to hand out.  Returns how
 * far that was.
 */
static int64
scan_events(Fetch *f, int64 settled)
{
	int64		from = scan_from(f);
	int64		bound = settled;
	int64		seen = 0;
	EsEventScan scan;
	TupleTableSlot *event;

	if (from >= settled)
		return settled;
	PushActiveSnapshot(GetTransactionSnapshot());
	es_event_scan_begin(&scan, f->subscription.filtered ? &f->subscription.filter : NULL,
						from, settled);
	while ((event = es_event_scan_next(&scan)) != NULL)
	{
		if (!hand_out(f, event, scan.last) ||
			(f->count > 0 && ++seen > (int64) f->max_count * SCAN_FACTOR))
		{
			bound = scan.last;
			break;
		}
	}
	es_event_scan_end(&scan);
	PopActiveSnapshot();
	return bound;
}

/*
 * Hand out a letter; its event is found by its position.
 */
static void
hand_out_letter(Fetch *f, EsLetter *letter)
{
	Relation	rel = table_open(es_catalog()->event, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	ScanKeyData key;

	ScanKeyInit(&key, 1, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(letter->position));
	if (es_index_find(rel, es_catalog()->event_key, &key, 1,
					  ForwardScanDirection, slot))
	{
		emit(f, letter->partition, slot, letter->deliveries + 1);
		es_letter_delivered(&f->subscription, letter->position);
		f->group.partitions[letter->partition].retrying = true;
	}
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
}

/*
 * Hand out parked events that are to be tried again, ahead of what is new.
 */
static void
scan_letters(Fetch *f)
{
	int			n = f->letters.n;

	for (int i = 0; i < n && f->count < f->max_count; i++)
	{
		EsLetter	letter = f->letters.letters[i];

		if (letter.parked || !f->portions[letter.partition].open ||
			es_letters_block(&f->letters, letter.stream, letter.position))
			continue;
		if (!f->locked)
			f->count++;
		else if (letter.deliveries >= f->subscription.max_deliveries)
			es_letter_park(&f->letters, &f->subscription, letter,
						   psprintf("not acknowledged after %d deliveries", letter.deliveries));
		else
			hand_out_letter(f, &letter);
	}
}

/*
 * Parked events that were handed out again and are not acknowledged are not
 * handed out any more, until they are again.
 */
static void
take_back_letters(Fetch *f)
{
	for (int i = 0; i < f->subscription.partitions; i++)
	{
		EsPartition *p = &f->group.partitions[i];

		if ((p->wanted || p->surplus) && p->retrying)
			es_letters_take_back(&f->subscription, i, 0);
		if (p->wanted || p->surplus)
			p->retrying = false;
	}
}

/*
 * What the state of a partition is after events up to "bound" were looked at.
 */
static void
move_partition(EsPartition *p, const Portion *portion, int64 bound)
{
	if (portion->open && portion->count == 0)
	{
		/* Nothing for us up to there. */
		p->position = Max(p->position, bound);
	}
	else if (portion->count > 0)
	{
		/* Nor before the first one. */
		p->position = Max(p->position, portion->first - 1);
		p->attempts++;
		p->batch = portion->count;
	}
	p->delivered = portion->count > 0 ? portion->last : p->position;
	p->handed_out = Max(p->handed_out, p->delivered);
	if (p->handed_out == p->position)
		p->batch = p->attempts = 0;
	if (p->failing != 0 && p->failing <= p->position)
		p->failing = p->failures = 0;
}

static void
save(Fetch *f, const EsPartition *p, const Portion *portion)
{
	Datum		values[13];

	values[0] = PointerGetDatum(f->subscription.name);
	values[1] = Int32GetDatum(p->number);
	values[2] = Int64GetDatum(p->position);
	values[3] = Int64GetDatum(p->delivered);
	values[4] = Int32GetDatum(p->attempts);
	values[5] = Int32GetDatum(p->batch);
	values[6] = Int64GetDatum(p->failing);
	values[7] = Int32GetDatum(p->failures);
	values[8] = BoolGetDatum(portion->open);
	values[9] = Int64GetDatum(portion->redelivered);
	values[10] = PointerGetDatum(f->consumer);
	values[11] = Float8GetDatum(f->lease_ms / 1000.0);
	values[12] = Int64GetDatum(p->handed_out);
	(void) es_run(&save_partition, values, NULL);
}

static void
release(Fetch *f, const EsPartition *p)
{
	Datum		values[2];

	values[0] = PointerGetDatum(f->subscription.name);
	values[1] = Int32GetDatum(p->number);
	(void) es_run(&release_partition, values, NULL);
}

/*
 * Write what has become of the partitions, and give back what is not our
 * share.  Returns the partitions in which we have events to acknowledge.
 */
static ArrayType *
save_partitions(Fetch *f, int64 bound)
{
	int			n = f->subscription.partitions;
	Datum	   *busy = palloc(sizeof(Datum) * n);
	int			nbusy = 0;

	for (int i = 0; i < n; i++)
	{
		EsPartition *p = &f->group.partitions[i];
		Portion    *portion = &f->portions[i];

		if (p->wanted)
		{
			move_partition(p, portion, bound);
			save(f, p, portion);
		}
		else if (p->surplus)
		{
			es_wake_consumers_at_commit();
			release(f, p);
		}
		if (p->wanted && es_partition_is_busy(p))
			busy[nbusy++] = Int32GetDatum(i);
	}
	return construct_array(busy, nbusy, INT4OID, sizeof(int32), true, TYPALIGN_INT);
}

static void
register_consumer(Fetch *f, ArrayType *busy)
{
	Datum		values[4];
	bool		isnull;

	values[0] = PointerGetDatum(f->subscription.name);
	values[1] = PointerGetDatum(f->consumer);
	values[2] = Float8GetDatum(f->lease_ms / 1000.0);
	values[3] = PointerGetDatum(busy);
	(void) es_run(&save_consumer, values, NULL);
	if (DatumGetBool(es_spi_value(0, 1, &isnull)))
		(void) es_run(&forget_consumers, values, NULL);
}

/*
 * What nobody else will hand out: remember that there is nothing up to there.
 */
static void
remember_clear(Fetch *f, int64 bound)
{
	for (int i = 0; i < f->subscription.partitions; i++)
		f->portions[i].clear_to = f->portions[i].open ? bound : 0;
}

/*
 * See whether there is anything to hand out, without locking anything.
 */
static bool
look(Fetch *f)
{
	EsSpi		spi;
	int64		settled;

	f->locked = false;
	f->count = 0;
	es_spi_begin(&spi);
	es_group_load(&f->group);
	es_group_share_out(&f->group);
	es_letters_load(&f->letters, &f->subscription);
	open_portions(f);
	settled = es_settled_position();
	scan_letters(f);
	if (f->count == 0)
		(void) scan_events(f, settled);
	if (f->count == 0)
		remember_clear(f, settled);
	es_spi_end(&spi);
	return f->count > 0;
}

static bool
has_locked_any(const Fetch *f)
{
	for (int i = 0; i < f->subscription.partitions; i++)
		if (f->group.partitions[i].wanted)
			return true;
	return false;
}

/*
 * Hand out what there is, and renew our leases.  Returns false, and has
 * changed nothing, where others have locked all that could be ours and
 * "anyway" is not set.
 */
static bool
take(Fetch *f, bool anyway)
{
	EsSpi		spi;
	int64		settled;
	bool		taken;

	f->locked = true;
	f->count = 0;
	es_spi_begin(&spi);
	es_group_load(&f->group);
	es_group_share_out(&f->group);
	es_group_lock(&f->group);
	taken = anyway || has_locked_any(f);
	if (taken)
	{
		int64		bound;

		take_back_letters(f);
		es_letters_load(&f->letters, &f->subscription);
		open_portions(f);
		settled = es_settled_position();
		scan_letters(f);
		bound = f->count < f->max_count ? scan_events(f, settled) : 0;
		register_consumer(f, save_partitions(f, bound));
	}
	es_spi_end(&spi);
	return taken;
}

/*
 * End the session where its client has gone: what would be handed out to it
 * would have to wait for the end of the lease.
 */
static void
check_client(void)
{
	CHECK_FOR_INTERRUPTS();
	if (MyProcPort != NULL && !pq_check_connection())
	{
		ClientConnectionLost = true;
		InterruptPending = true;
		CHECK_FOR_INTERRUPTS();
	}
}

/*
 * Sleep until there may be something new, but not beyond the deadline.
 */
static void
sleep_until_news(Fetch *f, TimestampTz deadline, bool others_hold_locks)
{
	EsDatabase *d = es_database();
	TimestampTz until = Min(deadline, f->group.next_change);
	long		ms = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);

	ms = Min(Max(ms, 1), CHECK_CLIENT_MS);
	/* Nobody tells us of a lock that is released, or if there is no scheduler. */
	if (others_hold_locks || pg_atomic_read_u32(&d->served) == 0)
		ms = Min(ms, LOCKED_RETRY_MS);
	(void) ConditionVariableTimedSleep(&d->news, ms, ES_WAIT_EVENT("EsFetch"));
	check_client();
}

static void
stop_waiting(int code, Datum arg)
{
	es_waiter_end();
	ConditionVariableCancelSleep();
}

/*
 * Wait until there is something to hand out, or time is up; then take it.
 */
static void
wait_and_take(Fetch *f, TimestampTz deadline)
{
	es_waiter_begin(f->subscription.name, f->consumer);
	for (;;)
	{
		bool		late;
		bool		found;

		ConditionVariablePrepareToSleep(&es_database()->news);
		late = GetCurrentTimestamp() >= deadline;
		found = look(f);
		if ((found || late) && take(f, late))
			return;
		sleep_until_news(f, deadline, found);
	}
}

/*
 * Refuse to hand out where that cannot be.
 */
static void
check_can_fetch(bool wait)
{
	PreventCommandIfReadOnly("es_fetch()");
	PreventCommandDuringRecovery("es_fetch()");
	PreventCommandIfParallelMode("es_fetch()");
	if (wait && IsolationUsesXactSnapshot())
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("es_fetch() cannot wait in a REPEATABLE READ or SERIALIZABLE transaction"),
				 errdetail("Its snapshot would not see what it waits for."),
				 errhint("Use READ COMMITTED, or do not wait.")));
	if (!es_identity_active())
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("this database is a copy whose subscriptions are suspended"),
				 errdetail("Its consumers would handle a second time what those of the original handle."),
				 errhint("Call es_activate() if the copy is to take the place of the original.")));
}

static int
max_count_argument(FunctionCallInfo fcinfo, int arg)
{
	if (PG_ARGISNULL(arg) || PG_GETARG_INT32(arg) < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("max_count must be at least 1")));
	return PG_GETARG_INT32(arg);
}

/*
 * es_fetch(subscription, consumer, max_count, lease, wait)
 *
 * At most max_count events of the partitions that fall to the consumer, in the
 * order of their positions, beginning with those it was given and has not
 * acknowledged.  The partitions are the consumer's for the time of the lease,
 * 10 ms to a day.  Where there is nothing, wait for it at most as long as
 * "wait" says, up to a day.  Errors: 42704 where there is no such
 * subscription, 42501 for who has not the rights of its owner, 22023, 22004
 * and 42622 on bad arguments, 0A000 for waiting in REPEATABLE READ, 55000 in a
 * copy that was not activated.  Leases and redelivery are those of Amazon SQS,
 * partitions and their sharing Kafka's.
 */
Datum
es_fetch(PG_FUNCTION_ARGS)
{
	Fetch		f = {0};
	int64		wait_ms;
	TimestampTz deadline;

	(void) es_database();
	es_subscription_load(&f.subscription, es_name_argument(fcinfo, 0, "subscription name"));
	f.consumer = es_name_argument(fcinfo, 1, "consumer name");
	f.max_count = max_count_argument(fcinfo, 2);
	f.lease_ms = es_interval_argument(fcinfo, 3, "lease", ES_MIN_LEASE_MS, ES_DAY_MS);
	wait_ms = es_interval_argument(fcinfo, 4, "wait", 0, ES_DAY_MS);
	check_can_fetch(wait_ms > 0);

	f.group.subscription = &f.subscription;
	f.group.consumer = f.consumer;
	f.portions = palloc0(sizeof(Portion) * f.subscription.partitions);
	InitMaterializedSRF(fcinfo, MAT_SRF_BLESS);
	f.result = (ReturnSetInfo *) fcinfo->resultinfo;
	if (wait_ms == 0)
	{
		(void) take(&f, true);
		return (Datum) 0;
	}

	deadline = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), wait_ms);
	PG_ENSURE_ERROR_CLEANUP(stop_waiting, (Datum) 0);
	{
		wait_and_take(&f, deadline);
	}
	PG_END_ENSURE_ERROR_CLEANUP(stop_waiting, (Datum) 0);
	stop_waiting(0, (Datum) 0);
	return (Datum) 0;
}
