/*-------------------------------------------------------------------------
 * identity.c
 *	  Which database a log belongs to: telling a copy from the original.
 *
 * A restored or cloned log must not send its announcements, commands and
 * e-mails a second time.  The first use of a log writes the identity of its
 * database (system identifier and oid) into es.identity, and the table goes
 * along into every dump and clone.  Workers serve a log whose only identity is
 * that of the database they are in: not a copy, whose rows name another one,
 * and not a restore that is still under way, which has no row yet.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "access/xlogrecovery.h"
#include "catalog.h"
#include "catalog/pg_type.h"
#include "es.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "store/feed.h"
#include "store/identity.h"
#include "store/watermark.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/snapmgr.h"

PG_FUNCTION_INFO_V1(es_activate);
PG_FUNCTION_INFO_V1(es_epoch);
PG_FUNCTION_INFO_V1(es_suspended);

static EsStatement add_identity = ES_SQL(
	"INSERT INTO es.identity VALUES ($1, $2, clock_timestamp())",
	2, TEXTOID, OIDOID);

/*
 * Who we are, as a row of es.identity begins.
 */
static void
my_identity(Datum *values)
{
	values[0] = CStringGetTextDatum(psprintf(UINT64_FORMAT, GetSystemIdentifier()));
	values[1] = ObjectIdGetDatum(MyDatabaseId);
}

static bool
is_mine(TupleTableSlot *slot, const Datum *me)
{
	bool		isnull;
	text	   *identifier = DatumGetTextPP(slot_getattr(slot, 1, &isnull));
	text	   *mine = DatumGetTextPP(me[0]);

	return VARSIZE_ANY_EXHDR(identifier) == VARSIZE_ANY_EXHDR(mine) &&
		memcmp(VARDATA_ANY(identifier), VARDATA_ANY(mine), VARSIZE_ANY_EXHDR(mine)) == 0 &&
		slot_getattr(slot, 2, &isnull) == me[1];
}

/*
 * Count the identities that are ours and those of others.  Not by SPI, since
 * that would be most of what an announcement takes.
 */
static void
count(int64 *mine, int64 *others)
{
	Relation	rel = table_open(es_catalog()->identity, AccessShareLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	Snapshot	snapshot = RegisterSnapshot(GetTransactionSnapshot());
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);
	Datum		me[2];

	my_identity(me);
	*mine = *others = 0;
	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
	{
		if (is_mine(slot, me))
			(*mine)++;
		else
			(*others)++;
	}
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, AccessShareLock);
}

/*
 * Write our identity.  From then on no subscription feeds the log, which every
 * session is told.
 */
static void
add(void)
{
	EsSpi		spi;
	Datum		values[2];

	es_spi_begin(&spi);
	my_identity(values);
	(void) es_run(&add_identity, values, NULL);
	es_spi_end(&spi);
	CacheInvalidateRelcacheByRelid(es_catalog()->event);
	es_feed_forget();
}

/*
 * Write our identity into a log that has none.  Two sessions that do it at
 * once write it twice, which harms nobody and makes nobody wait.
 *
 * Called by every append, so what was found is remembered; but not what this
 * very transaction has added, which a rollback takes back.
 */
void
es_identity_establish(void)
{
	static Oid	established = InvalidOid;	/* the log known to have one */
	static LocalTransactionId added_by = InvalidLocalTransactionId;
	Oid			log = es_catalog()->event;
	int64		mine;
	int64		others;

	if (established == log)
		return;
	count(&mine, &others);
	if (mine + others == 0)
	{
		add();
		added_by = ES_MY_LXID;
	}
	else if (added_by != ES_MY_LXID)
		established = log;
}

/*
 * Whether workers may serve this database.
 */
bool
es_identity_active(void)
{
	int64		mine;
	int64		others;

	count(&mine, &others);
	return mine > 0 && others == 0;
}

/*
 * Whether the log has been in use in this very database.
 */
bool
es_identity_is_mine(void)
{
	int64		mine;
	int64		others;

	count(&mine, &others);
	return mine > 0;
}

/*
 * Remove all identities, past the trigger that keeps everybody else from it:
 * without them the log would take rows as a restore brings them.
 */
static void
remove_all(void)
{
	Relation	rel = table_open(es_catalog()->identity, ShareRowExclusiveLock);
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	Snapshot	snapshot = RegisterSnapshot(GetLatestSnapshot());
	TableScanDesc scan = table_beginscan(rel, snapshot, 0, NULL);

	while (table_scan_getnextslot(scan, ForwardScanDirection, slot))
		simple_table_tuple_delete(rel, &slot->tts_tid, snapshot);
	table_endscan(scan);
	UnregisterSnapshot(snapshot);
	ExecDropSingleTupleTableSlot(slot);
	table_close(rel, NoLock);
	CommandCounterIncrement();
}

/*
 * es_activate(): make the log that of this database.
 */
Datum
es_activate(PG_FUNCTION_ARGS)
{
	PreventCommandIfReadOnly("es_activate()");
	remove_all();
	add();
	es_wake_at_commit();
	PG_RETURN_VOID();
}

/*
 * es.suspended(): whether workers wait for es_activate().
 */
Datum
es_suspended(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(!es_identity_active());
}

/*
 * The epoch: positions of two epochs cannot be compared, since a failover may
 * have lost the newest of the old one.
 */
char *
es_epoch_text(void)
{
	TimeLineID	timeline;

	if (RecoveryInProgress())
		(void) GetXLogReplayRecPtr(&timeline);
	else
		timeline = GetWALInsertionTimeLine();
	return psprintf(UINT64_FORMAT "/%u", GetSystemIdentifier(), timeline);
}

Datum
es_epoch(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(es_epoch_text()));
}
