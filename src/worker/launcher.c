/*-------------------------------------------------------------------------
 * launcher.c
 *	  The process that starts a scheduler for each database with a log.
 *
 * It is connected to no database.  When it starts it lets a scheduler look
 * into each database in turn; one that finds no extension goes away again.
 * After that, the first commit that uses a log asks for a scheduler (see
 * watermark.c), and the launcher's latch is set.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "es.h"
#include "fault.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "store/watermark.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/snapmgr.h"
#include "worker/launcher.h"
#include "worker/shell.h"

extern PGDLLEXPORT void es_launcher_main(Datum arg);

/* While there are databases to look into, the launcher looks round this often. */
#define PROBE_MS	1000

/* Databases still to be looked into, and the one that is. */
static List *to_probe = NIL;
static Oid	probing = InvalidOid;

/* When schedulers were started. */
static List *restarts = NIL;

/*
 * The databases that one can connect to, templates apart: these must stay
 * free of connections to be copied.
 */
static void
list_databases(void)
{
	MemoryContext context = CurrentMemoryContext;
	Relation	rel;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	rel = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(rel, 0, NULL);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (database->datallowconn && !database->datistemplate)
		{
			MemoryContext old = MemoryContextSwitchTo(context);

			to_probe = lappend_oid(to_probe, database->oid);
			MemoryContextSwitchTo(old);
		}
	}
	table_endscan(scan);
	table_close(rel, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);
}

/*
 * Let a scheduler look into the next database, one at a time.  Where there is
 * no room for it now, the database stays on the list.
 */
static void
probe(void)
{
	if (OidIsValid(probing) &&
		es_worker_exists(ES_SCHEDULER, probing, InvalidOid, 0) &&
		!es_database_is_served(probing))
		return;
	probing = InvalidOid;
	while (to_probe != NIL && !OidIsValid(probing))
	{
		Oid			database = linitial_oid(to_probe);

		if (es_worker_start(ES_SCHEDULER, database, InvalidOid, 0))
			probing = database;
		else if (!es_worker_exists(ES_SCHEDULER, database, InvalidOid, 0))
			break;
		to_probe = list_delete_first(to_probe);
	}
}

/*
 * Start the schedulers that are wanted and missing.  Returns how long to sleep.
 */
static long
start_wanted(void)
{
	Oid		   *databases = palloc(sizeof(Oid) * es_max_databases);
	int			n = es_databases_wanted(databases, es_max_databases);
	long		timeout = ES_HEARTBEAT_MS;

	for (int i = 0; i < n; i++)
		if (!es_worker_exists(ES_SCHEDULER, databases[i], InvalidOid, 0) &&
			es_restart_due(&restarts, ES_SCHEDULER, databases[i], InvalidOid, 0,
						   &timeout))
		{
			(void) es_worker_start(ES_SCHEDULER, databases[i], InvalidOid, 0);
			/* Should it not come up, nobody else tells us. */
			timeout = Min(timeout, 1000);
		}
	pfree(databases);
	return timeout;
}

void
es_launcher_main(Datum arg)
{
	(void) es_worker_begin(ES_LAUNCHER, arg, NULL);
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	CurrentMemoryContext = TopMemoryContext;
	list_databases();

	for (;;)
	{
		long		timeout;

		ES_FAULT("launcher.round");
		es_workers_reap(ES_SCHEDULER, InvalidOid);
		probe();
		timeout = start_wanted();
		if (OidIsValid(probing) || to_probe != NIL)
			timeout = Min(timeout, PROBE_MS);
		es_worker_sleep(timeout);
	}
}

/*
 * Register the launcher while the library is preloaded.
 */
void
es_launcher_register(void)
{
	BackgroundWorker worker = {0};

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "es", sizeof(worker.bgw_library_name));
	strlcpy(worker.bgw_function_name, "es_launcher_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "es launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "es launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}
