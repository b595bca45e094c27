/*-------------------------------------------------------------------------
 * init.c
 *	  Loading the library: this only calls the parts.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog.h"
#include "command/definition.h"
#include "es.h"
#include "fanout/change.h"
#include "fanout/channel.h"
#include "fanout/lease.h"
#include "fmgr.h"
#include "guc.h"
#include "miscadmin.h"
#include "projection/depend.h"
#include "projection/registry.h"
#include "projection/sync.h"
#include "storage/ipc.h"
#include "store/feed.h"
#include "store/guard.h"
#include "store/hint.h"
#include "store/wakeup.h"
#include "store/watermark.h"
#include "worker/database.h"
#include "worker/launcher.h"
#include "worker/shell.h"

ES_MODULE_MAGIC;

extern PGDLLEXPORT void _PG_init(void);

static shmem_request_hook_type previous_shmem_request = NULL;
static shmem_startup_hook_type previous_shmem_startup = NULL;

static void
shmem_request(void)
{
	if (previous_shmem_request)
		previous_shmem_request();
	es_watermark_shmem_request();
	es_hint_shmem_request();
	es_wakeup_shmem_request();
	es_lease_shmem_request();
	es_shell_shmem_request();
}

static void
shmem_startup(void)
{
	if (previous_shmem_startup)
		previous_shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	es_watermark_shmem_init();
	es_hint_shmem_init();
	es_wakeup_shmem_init();
	es_lease_shmem_init();
	es_shell_shmem_init();
	LWLockRelease(AddinShmemInitLock);
}

void
_PG_init(void)
{
	es_guc_init();
	es_catalog_init();
	es_feed_init();
	es_watermark_init();
	es_hint_init();
	es_guard_init();
	es_definitions_init();
	es_projection_registry_init();
	es_channel_init();
	es_lease_init();
	es_sync_init();
	es_change_init();
	es_depend_init();

	/* Without shared memory the rest could do nothing; see es_database(). */
	if (!process_shared_preload_libraries_in_progress)
		return;
	previous_shmem_request = shmem_request_hook;
	shmem_request_hook = shmem_request;
	previous_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = shmem_startup;
	es_database_hook_init();
	if (!IsBinaryUpgrade && es_workers)
		es_launcher_register();
}
