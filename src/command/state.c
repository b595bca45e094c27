/*-------------------------------------------------------------------------
 * state.c
 *	  The state of an aggregate: its stream's events, folded by evolve.
 *
 * The fold is a loop over an index scan on (stream, version) that evaluates the
 * call of evolve.  It begins with the newest state that was kept, which is one
 * of two:
 *
 * A snapshot is a row of es.snapshot, written by the transaction that appended
 * the event of its version.  Whoever sees the row therefore sees the events it
 * was folded from, and the other way round.  A row names the identity of the
 * evolve function and initial state that it was made with, and is looked for
 * by it, so that one made with a replaced function is never found.
 *
 * The cache holds the states that this backend last decided on, by stream.  An
 * entry names the version and position of the newest event in it, and counts
 * only if the event of that version in the log still is at that position.
 * Proof that the entry's state is then that of the log: a position is used
 * once, so it is the very event, and it was appended when all before it were
 * visible to its transaction under the stream's lock.  Such an event was
 * committed, or was of the same transaction; in that case, had a subtransaction
 * taken it back before ours was appended, ours would have got its version, and
 * had one taken it back later, that would have taken ours back, too.  Events
 * never change; when a superuser changes the log nevertheless, a trigger drops
 * the snapshots and invalidates the caches, as every change of a function does.
 *
 * A decision reads what is committed at this instant or its own: the stream's
 * lock keeps others from adding to it.  es_state() reads by its statement's
 * snapshot, which sees a prefix of every stream, as the lock was held until
 * each append was visible.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "command/definition.h"
#include "command/state.h"
#include "common/hashfn.h"
#include "es.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "store/append.h"
#include "store/hint.h"
#include "store/table.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/regproc.h"
#include "utils/rls.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(es_state);

/* The columns of es.event that are looked at here, from 1 on. */
#define EVENT_POSITION		1
#define EVENT_VERSION		2
#define EVENT_RECORDED_AT	3

/* The columns of es.snapshot. */
enum
{
	SNAPSHOT_VERSION,
	SNAPSHOT_IDENTITY,
	SNAPSHOT_POSITION,
	SNAPSHOT_TAKEN_AT,
	SNAPSHOT_STREAM,
	SNAPSHOT_STATE,
	SNAPSHOT_COLUMNS
};

static EsTable snapshot_table = ES_TABLE(SNAPSHOT_COLUMNS, INT8OID, INT8OID, INT8OID,
										 TIMESTAMPTZOID, TEXTOID, JSONBOID);

/*
 * A fold forgets what evolve left behind after so many bytes: few enough that
 * malloc() does not take memory from the kernel and give it back every time.
 */
#define GARBAGE_LIMIT	(32 * 1024)

/* States in the cache, and the size up to which they are kept there. */
#define CACHE_ENTRIES	64
#define CACHE_STATE_MAX	(64 * 1024)

typedef struct CacheEntry
{
	char		stream[ES_MAX_NAME + 1];
	uint64		generation;		/* of the definitions */
	int64		identity;
	int64		version;
	int64		position;
	Jsonb	   *state;			/* NULL: the entry is free */
} CacheEntry;

/* Changed by remember() alone. */
static CacheEntry *cache = NULL;

/* Whether an evolve function is running. */
static bool evolving = false;

/*
 * A fold under way.  The state lives in one of two contexts in turn, so that
 * what evolve leaves behind can be dropped.
 */
typedef struct Fold
{
	EsState    *s;
	text	   *stream;
	Snapshot	snapshot;
	EsCall		evolve;
	MemoryContext contexts[2];
	int			current;
	TupleTableSlot *slot;
} Fold;

static int64
column_int64(TupleTableSlot *slot, int column)
{
	bool		isnull;

	return DatumGetInt64(slot_getattr(slot, column, &isnull));
}

/*
 * Error context: which function on which event.
 */
static void
evolve_context(void *arg)
{
	Fold	   *f = (Fold *) arg;

	errcontext("evolve function %s at version " INT64_FORMAT " of stream \"%s\"",
			   format_procedure(f->s->aggregate->evolve),
			   f->s->version + 1, text_to_cstring(f->stream));
}

/*
 * Move the state to the other context and drop what is left in this one.
 */
static void
drop_garbage(Fold *f)
{
	MemoryContext old = f->contexts[f->current];
	Jsonb	   *state = f->s->state;

	f->current = 1 - f->current;
	f->s->state = MemoryContextAlloc(f->contexts[f->current], VARSIZE(state));
	memcpy(f->s->state, state, VARSIZE(state));
	MemoryContextReset(old);
}

/*
 * Fold the event in the slot into the state.
 */
static void
evolve(Fold *f)
{
	EsState    *s = f->s;
	MemoryContext old = MemoryContextSwitchTo(f->contexts[f->current]);
	Datum		result;
	bool		isnull;

	result = es_call(&f->evolve, JsonbPGetDatum(s->state),
					 ExecFetchSlotHeapTupleDatum(f->slot), &isnull);
	if (isnull)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_NULL_VALUE_NOT_ALLOWED),
				 errmsg("evolve function %s returned NULL for the event at position " INT64_FORMAT,
						format_procedure(s->aggregate->evolve),
						column_int64(f->slot, EVENT_POSITION)),
				 errdetail("It is version " INT64_FORMAT " of stream \"%s\".",
						   column_int64(f->slot, EVENT_VERSION), text_to_cstring(f->stream)),
				 errhint("Return the state unchanged for events that do not matter; mind that jsonb || NULL is NULL.")));
	s->state = DatumGetJsonbP(result);
	MemoryContextSwitchTo(old);
	s->version = column_int64(f->slot, EVENT_VERSION);
	s->position = column_int64(f->slot, EVENT_POSITION);
	s->folded++;
	if (MemoryContextMemAllocated(f->contexts[f->current], true) >
		GARBAGE_LIMIT + VARSIZE(s->state))
		drop_garbage(f);
}

/*
 * Begin a scan over the versions of the stream in a range.
 */
static IndexScanDesc
scan_versions(Fold *f, Relation rel, Relation index, int64 from, int64 to)
{
	IndexScanDesc scan = es_index_beginscan(rel, index, f->snapshot, 3);
	ScanKeyData keys[3];

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(f->stream));
	ScanKeyInit(&keys[1], 2, BTGreaterEqualStrategyNumber, F_INT8GE,
				Int64GetDatum(from));
	ScanKeyInit(&keys[2], 2, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum(to));
	index_rescan(scan, keys, 3, NULL, 0);
	return scan;
}

/*
 * Fold the events up to a version into a state.  Where the state is to be
 * verified, the scan begins with its own event; false where that is not at its
 * position, and the state is not of this log.
 */
static bool
fold_events(Fold *f, int64 to, bool verify)
{
	Relation	rel = table_open(es_catalog()->event, AccessShareLock);
	Relation	index = index_open(es_catalog()->event_stream, AccessShareLock);
	IndexScanDesc scan;
	bool		good = true;

	f->slot = table_slot_create(rel, NULL);
	scan = scan_versions(f, rel, index, f->s->version + (verify ? 0 : 1), to);
	if (verify)
		good = index_getnext_slot(scan, ForwardScanDirection, f->slot) &&
			column_int64(f->slot, EVENT_POSITION) == f->s->position;
	while (good && f->s->version < to)
	{
		CHECK_FOR_INTERRUPTS();
		if (!index_getnext_slot(scan, ForwardScanDirection, f->slot) ||
			column_int64(f->slot, EVENT_VERSION) != f->s->version + 1)
			elog(ERROR, "stream \"%s\" has no version " INT64_FORMAT,
				 text_to_cstring(f->stream), f->s->version + 1);
		evolve(f);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(f->slot);
	index_close(index, NoLock);
	table_close(rel, NoLock);
	return good;
}

/*
 * The newest snapshot of the stream up to a version, if there is one.
 */
static bool
find_snapshot(Fold *f, int64 to)
{
	Relation	rel = table_open(es_catalog()->snapshot, AccessShareLock);
	Relation	index = index_open(es_catalog()->snapshot_key, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	IndexScanDesc scan = es_index_beginscan(rel, index, f->snapshot, 3);
	ScanKeyData keys[3];
	bool		found;

	ScanKeyInit(&keys[0], 1, BTEqualStrategyNumber, F_TEXTEQ,
				PointerGetDatum(f->stream));
	ScanKeyInit(&keys[1], 2, BTEqualStrategyNumber, F_INT8EQ,
				Int64GetDatum(f->s->aggregate->identity));
	ScanKeyInit(&keys[2], 3, BTLessEqualStrategyNumber, F_INT8LE,
				Int64GetDatum(to));
	index_rescan(scan, keys, 3, NULL, 0);
	found = index_getnext_slot(scan, BackwardScanDirection, slot);
	if (found)
	{
		slot_getallattrs(slot);
		f->s->version = DatumGetInt64(slot->tts_values[SNAPSHOT_VERSION]);
		f->s->position = DatumGetInt64(slot->tts_values[SNAPSHOT_POSITION]);
		f->s->state = DatumGetJsonbPCopy(slot->tts_values[SNAPSHOT_STATE]);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(rel, NoLock);
	return found;
}

/*
 * Begin with a snapshot or, where there is none, from scratch.
 */
static void
begin_from_table(Fold *f, int64 to)
{
	if (to > 0 && find_snapshot(f, to))
		return;
	f->s->version = 0;
	f->s->position = 0;
	f->s->state = f->s->aggregate->initial_state;
}

static CacheEntry *
cache_entry(const text *stream)
{
	uint32		hash = hash_bytes((const unsigned char *) VARDATA_ANY(stream),
								  VARSIZE_ANY_EXHDR(stream));

	if (cache == NULL)
		cache = MemoryContextAllocZero(TopMemoryContext,
									   sizeof(CacheEntry) * CACHE_ENTRIES);
	return &cache[hash % CACHE_ENTRIES];
}

/*
 * Keep a state for the next decision on the stream.
 */
static void
remember(const EsState *s, const text *stream)
{
	CacheEntry *entry = cache_entry(stream);
	Jsonb	   *state;

	if (entry->state)
		pfree(entry->state);
	entry->state = NULL;
	if (s->version == 0 || VARSIZE(s->state) > CACHE_STATE_MAX)
		return;
	state = MemoryContextAlloc(TopMemoryContext, VARSIZE(s->state));
	memcpy(state, s->state, VARSIZE(s->state));
	text_to_cstring_buffer(stream, entry->stream, sizeof(entry->stream));
	entry->generation = es_definitions_generation();
	entry->identity = s->aggregate->identity;
	entry->version = s->version;
	entry->position = s->position;
	entry->state = state;
}

/*
 * Begin with what the cache has for the stream, if that is close enough to
 * what is wanted.  It still has to be verified.
 */
static bool
begin_from_cache(Fold *f, int64 to)
{
	CacheEntry *entry = cache_entry(f->stream);
	int			len = VARSIZE_ANY_EXHDR(f->stream);
	int			near = f->s->aggregate->snapshot_every;

	if (entry->state == NULL || strlen(entry->stream) != len ||
		memcmp(entry->stream, VARDATA_ANY(f->stream), len) != 0 ||
		entry->generation != es_definitions_generation() ||
		entry->identity != f->s->aggregate->identity ||
		entry->version > to || (near > 0 && to - entry->version > near))
		return false;
	f->s->version = entry->version;
	f->s->position = entry->position;
	f->s->state = palloc(VARSIZE(entry->state));
	memcpy(f->s->state, entry->state, VARSIZE(entry->state));
	return true;
}

/*
 * Fold up to a version, with user code: set up what that needs, and clean up
 * after it.  The state is left in the current memory context.
 */
static void
run_fold(Fold *f, int64 to, bool verify)
{
	EsState    *s = f->s;
	EsAggregate *a = s->aggregate;
	MemoryContext context = CurrentMemoryContext;
	const char *deciding;
	ErrorContextCallback callback;
	bool		outer = evolving;
	int			level;

	for (int i = 0; i < 2; i++)
		f->contexts[i] = AllocSetContextCreate(context, "es fold",
											   ALLOCSET_DEFAULT_SIZES);
	callback.callback = evolve_context;
	callback.arg = f;
	callback.previous = error_context_stack;
	error_context_stack = &callback;
	level = es_search_path_enter(a->search_path);
	deciding = es_deciding_begin(psprintf("the evolve function of category \"%s\"",
										  a->category));
	evolving = true;
	PG_TRY();
	{
		es_call_begin(&f->evolve, a->evolve_plan, a->evolve, es_rowtype("event"));
		if (!fold_events(f, to, verify))
		{
			begin_from_table(f, to);
			(void) fold_events(f, to, false);
		}
		es_call_end(&f->evolve);
	}
	PG_FINALLY();
	{
		evolving = outer;
		es_deciding_end(deciding);
	}
	PG_END_TRY();
	es_search_path_leave(level);
	error_context_stack = callback.previous;

	MemoryContextSwitchTo(context);
	if (s->folded > 0)
	{
		Jsonb	   *state = palloc(VARSIZE(s->state));

		memcpy(state, s->state, VARSIZE(s->state));
		s->state = state;
	}
	for (int i = 0; i < 2; i++)
		MemoryContextDelete(f->contexts[i]);
}

static void
check_may_evolve(const EsAggregate *a)
{
	if (!es_may_execute(a->evolve))
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_FUNCTION, get_func_name(a->evolve));
}

/*
 * The state of a locked stream, to decide on.  The stream may go on by
 * es_state_appended().
 */
void
es_state_decide(EsState *state, EsAggregate *aggregate, const EsStream *stream)
{
	Fold		f = {.s = state,.stream = stream->name,.snapshot = SnapshotSelf};
	bool		verify;

	memset(state, 0, sizeof(*state));
	state->aggregate = aggregate;
	check_may_evolve(aggregate);
	verify = begin_from_cache(&f, stream->version);
	if (!verify)
		begin_from_table(&f, stream->version);
	else if (state->version == stream->version)
		verify = state->position != stream->position;
	if (verify || state->version < stream->version)
		run_fold(&f, stream->version, verify);
}

static void
take_snapshot(const EsState *s, text *stream)
{
	Datum		values[SNAPSHOT_COLUMNS];
	bool		nulls[SNAPSHOT_COLUMNS] = {false};
	EsWriter	writer;

	values[SNAPSHOT_VERSION] = Int64GetDatum(s->version);
	values[SNAPSHOT_IDENTITY] = Int64GetDatum(s->aggregate->identity);
	values[SNAPSHOT_POSITION] = Int64GetDatum(s->position);
	values[SNAPSHOT_TAKEN_AT] = TimestampTzGetDatum(GetCurrentTimestamp());
	values[SNAPSHOT_STREAM] = PointerGetDatum(stream);
	values[SNAPSHOT_STATE] = JsonbPGetDatum(s->state);
	es_writer_open(&writer, &snapshot_table, es_catalog()->snapshot);
	es_writer_insert_row(&writer, values, nulls);
	es_writer_close(&writer);
}

/*
 * Events were appended to the stream that was decided on: fold them, too, so
 * that one which cannot be folded is refused with the command that led to it,
 * keep the state, and take a snapshot where one is due.
 */
void
es_state_appended(EsState *state, const EsStream *stream)
{
	int			every = state->aggregate->snapshot_every;
	int64		folded = state->folded;
	int64		before = state->version;
	Fold		f = {.s = state,.stream = stream->name,.snapshot = SnapshotSelf};

	check_may_evolve(state->aggregate);
	run_fold(&f, stream->version, false);
	remember(state, stream->name);
	if (every > 0 && (folded >= every || stream->version / every > before / every))
		take_snapshot(state, stream->name);
}

/*
 * es_state() shows what the events say, so it asks for the right to read them.
 */
static void
check_may_read(void)
{
	Oid			event = es_catalog()->event;

	if (pg_class_aclcheck(event, GetUserId(), ACL_SELECT) != ACLCHECK_OK)
		aclcheck_error(ACLCHECK_NO_PRIV, OBJECT_TABLE, "event");
	if (check_enable_rls(event, InvalidOid, false) == RLS_ENABLED)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("es_state() cannot be used under row security"),
				 errdetail("A state folded from only some of the events would be wrong."),
				 errhint("Call it as a role that sees all events.")));
}

/*
 * The newest version of a stream that the snapshot sees, that was recorded at
 * a time or before, and is between two.
 */
static int64
newest_between(Fold *f, int64 from, int64 to, TimestampTz at)
{
	Relation	rel = table_open(es_catalog()->event, AccessShareLock);
	Relation	index = index_open(es_catalog()->event_stream, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	IndexScanDesc scan = scan_versions(f, rel, index, from, to);
	int64		version = 0;

	while (version == 0 && index_getnext_slot(scan, BackwardScanDirection, slot))
	{
		CHECK_FOR_INTERRUPTS();
		if (column_int64(slot, EVENT_RECORDED_AT) <= at)
			version = column_int64(slot, EVENT_VERSION);
	}
	index_endscan(scan);
	ExecDropSingleTupleTableSlot(slot);
	index_close(index, NoLock);
	table_close(rel, NoLock);
	return version;
}

/*
 * The same of those not above a limit.  A scan takes in all entries of the stream
 * on the index page it begins with, so where somebody has left word at which
 * version the stream is, look from there on first.
 */
static int64
newest_version(Fold *f, int64 limit, TimestampTz at)
{
	ItemPointerData row;
	int64		hint;
	int64		version = 0;

	if (es_hint_get(f->stream, &row, &hint) && hint <= limit)
		version = newest_between(f, hint, limit, at);
	return version > 0 ? version : newest_between(f, 1, limit, at);
}

static int64
version_argument(FunctionCallInfo fcinfo, int arg)
{
	if (PG_ARGISNULL(arg))
		return PG_INT64_MAX;
	if (PG_GETARG_INT64(arg) < 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("at_version must not be negative"),
				 errdetail("It is " INT64_FORMAT ".", PG_GETARG_INT64(arg)),
				 errhint("Version 0 is the initial state; NULL stands for the newest version.")));
	return PG_GETARG_INT64(arg);
}

/*
 * es_state(stream, at_version, at_time)
 *
 * The state of a stream, as the statement's snapshot sees it: at a version (0
 * is the initial state), at the newest version recorded at a time or before,
 * or now; with both, the older one.  Needs SELECT on es.event, and runs evolve
 * as the caller.  Errors: 42704 where the category has no aggregate, 22023
 * where the stream has no such version, and those of evolve.
 */
Datum
es_state(PG_FUNCTION_ARGS)
{
	EsState		state = {0};
	Fold		f = {0};
	text	   *category;
	int64		limit;
	int64		version;

	if (evolving)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("es_state() cannot be called inside an evolve function"),
				 errdetail("A state depends on the events of its stream and on nothing else."),
				 errhint("Put what the fold needs into the event.")));
	es_check_name("stream name", PG_ARGISNULL(0) ? NULL : PG_GETARG_TEXT_PP(0));
	limit = version_argument(fcinfo, 1);
	category = es_category_of(PG_GETARG_TEXT_PP(0));
	state.aggregate = es_aggregate_of(category);
	if (state.aggregate == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("category \"%s\" has no aggregate", text_to_cstring(category)),
				 errdetail("None is defined in this database."),
				 errhint("See es_aggregates for what there is, and es_create_aggregate() to define it.")));
	check_may_read();
	check_may_evolve(state.aggregate);

	f.s = &state;
	f.stream = PG_GETARG_TEXT_PP(0);
	f.snapshot = GetActiveSnapshot();
	version = newest_version(&f, limit,
							 PG_ARGISNULL(2) ? DT_NOEND : PG_GETARG_TIMESTAMPTZ(2));
	if (!PG_ARGISNULL(1) && PG_ARGISNULL(2) && version < limit)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("stream \"%s\" has no version " INT64_FORMAT,
						text_to_cstring(f.stream), limit),
				 errdetail("Its newest version is " INT64_FORMAT ".", version),
				 errhint("Leave at_version out for the newest.")));
	begin_from_table(&f, version);
	if (state.version < version)
		run_fold(&f, version, false);
	PG_RETURN_JSONB_P(state.state);
}
