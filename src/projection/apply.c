/*-------------------------------------------------------------------------
 * apply.c
 *	  Applying a batch of events to the read models of a projection.
 *
 * Runs inside a transaction that the worker begins and ends.  The order is
 * what makes it exact:
 *
 *		lock the checkpoint row		nobody else applies, drops or alters it
 *		compute the settled position
 *		take a snapshot				younger than the settled position
 *		run the query				over (checkpoint, settled], as the owner
 *		move the checkpoint			in the same transaction
 *
 * The isolation level is READ COMMITTED (the worker sees to it), so every
 * statement of the query takes a snapshot of its own, each younger than the
 * settled position.
 *
 * A checkpoint that somebody else holds is passed over: that is another
 * worker, while processes come and go, or a session that alters the
 * projection.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "fault.h"
#include "guc.h"
#include "projection/apply.h"
#include "projection/batch.h"
#include "projection/poison.h"
#include "projection/run.h"
#include "store/watermark.h"
#include "utils/builtins.h"
#include "utils/snapmgr.h"

/*
 * A projection further behind than this many batches counts as catching up,
 * until it is within one.
 */
#define FAR_BEHIND	8

#define CHECKPOINT \
	"WHERE projection = $1 AND rebuild = $2 AND partition = $3 "

#define LOCK_CHECKPOINT \
	"SELECT ctid, position, revision, catching_up FROM es.checkpoint " CHECKPOINT

#define MOVE_CHECKPOINT \
	"UPDATE es.checkpoint SET position = $4, events_applied = events_applied + $5, " \
	"  batches = batches + ($5 > 0)::int, " \
	"  applied_at = CASE WHEN $5 > 0 THEN clock_timestamp() ELSE applied_at END, " \
	"  catching_up = $6, " \
	"  retries = 0, error_position = NULL, error_at = NULL, error_sqlstate = NULL, error = NULL " \
	CHECKPOINT

static EsStatement lock_checkpoint = ES_SQL(
	LOCK_CHECKPOINT "FOR UPDATE SKIP LOCKED",
	3, TEXTOID, INT4OID, INT4OID);
static EsStatement lock_checkpoint_at = ES_SQL(
	LOCK_CHECKPOINT "AND ctid = $4 FOR UPDATE SKIP LOCKED",
	4, TEXTOID, INT4OID, INT4OID, TIDOID);
static EsStatement move_checkpoint = ES_SQL(
	MOVE_CHECKPOINT "RETURNING ctid",
	6, TEXTOID, INT4OID, INT4OID, INT8OID, INT8OID, BOOLOID);
static EsStatement move_checkpoint_at = ES_SQL(
	MOVE_CHECKPOINT "AND ctid = $7 RETURNING ctid",
	7, TEXTOID, INT4OID, INT4OID, INT8OID, INT8OID, BOOLOID, TIDOID);

/*
 * Lock the checkpoint row and learn the position, and whether the projection
 * counts as catching up: another worker may have found so since we learnt it,
 * and who changes that must know what it was, to tell the others.
 */
EsApplied
es_projection_take(EsProjection *p)
{
	EsApplied	result = ES_BUSY;
	Datum		values[4];
	bool		isnull;
	EsSpi		spi;

	values[0] = CStringGetTextDatum(p->name);
	values[1] = Int32GetDatum(p->rebuild);
	values[2] = Int32GetDatum(p->partition);
	es_spi_begin(&spi);
	if (es_run_at(&p->checkpoint, &lock_checkpoint_at, &lock_checkpoint, values) == 1)
	{
		p->position = DatumGetInt64(es_spi_value(0, 2, &isnull));
		result = DatumGetInt64(es_spi_value(0, 3, &isnull)) == p->revision
			? ES_APPLIED : ES_STALE;
		p->catching_up = DatumGetBool(es_spi_value(0, 4, &isnull));
	}
	es_spi_end(&spi);
	return result;
}

static bool
is_far_behind(const EsProjection *p, int64 lag)
{
	int64		batch = es_batch_size_of(p);

	return lag > (p->catching_up ? batch : FAR_BEHIND * batch);
}

static void
put_checkpoint(EsProjection *p, int64 position, int64 events, bool catching_up)
{
	Datum		values[7];
	EsSpi		spi;

	values[0] = CStringGetTextDatum(p->name);
	values[1] = Int32GetDatum(p->rebuild);
	values[2] = Int32GetDatum(p->partition);
	values[3] = Int64GetDatum(position);
	values[4] = Int64GetDatum(events);
	values[5] = BoolGetDatum(catching_up);
	es_spi_begin(&spi);
	(void) es_run_at(&p->checkpoint, &move_checkpoint_at, &move_checkpoint, values);
	es_spi_end(&spi);
}

/*
 * Apply a batch and move the checkpoint, which is locked.
 */
void
es_projection_apply_batch(EsProjection *p, const EsBatch *batch, int64 settled)
{
	int64		events = 0;
	bool		catching_up = p->rebuild == 0 && !p->sync &&
		is_far_behind(p, settled - batch->to);

	p->attempt_after = batch->after;
	p->attempt_to = batch->to;
	if (!batch->empty)
	{
		PushActiveSnapshot(GetTransactionSnapshot());
		if (es_batch_has_any(p, batch))
		{
			EsBatchSeen seen;

			es_batch_seen_begin(&seen, batch->after, batch->to);
			es_projection_run(p, p->filtered ? &p->filter : NULL,
							  batch->after, batch->to, &seen, false);
			events = es_batch_count(p, batch, &seen);
			bms_free(seen.looked_at);
		}
		PopActiveSnapshot();
		if (p->filter.nparked > 0)
			es_park_events(p, batch);
	}
	ES_FAULT("projector.model");
	put_checkpoint(p, batch->to, events, catching_up);
	ES_FAULT("projector.checkpoint");
	if (catching_up != p->catching_up)
		es_projections_changed();
	p->catching_up = catching_up;
}

/*
 * Apply the next batch.  The caller has begun a READ COMMITTED transaction and
 * commits it, or aborts it on error and calls es_projection_failed().
 */
EsApplied
es_projection_apply(EsProjection *p)
{
	EsApplied	taken;
	int64		settled;
	EsBatch		batch;

	ES_FAULT(p->partition == 0 ? "projector.take" : "projector.take.other");
	taken = es_projection_take(p);
	if (taken != ES_APPLIED)
		return taken;
	settled = es_settled_position();
	batch = es_batch_next(p, settled);
	if (batch.to <= p->position)
		return ES_CAUGHT_UP;
	es_projection_apply_batch(p, &batch, settled);
	return ES_APPLIED;
}

/*
 * The batch is committed.
 */
void
es_projection_applied(EsProjection *p)
{
	p->position = p->attempt_to;
	if (p->position >= p->suspect_to)
		p->suspect_to = 0;
	if (p->retries > 0)
		ereport(LOG,
				(errmsg("projection \"%s\" goes on from position " INT64_FORMAT,
						p->name, p->position)));
	p->retries = 0;
	p->collisions = 0;
	p->retry_at = 0;
}
