/*-------------------------------------------------------------------------
 * guc.c
 *	  The settings of the extension, each with its unit, range and default.
 *
 * Hooks here may run outside a transaction (postgresql.conf, ALTER ROLE SET),
 * so they look at no table and raise no error of their own.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <limits.h>

#include "access/xact.h"
#include "common/jsonapi.h"
#include "datatype/timestamp.h"
#include "es.h"
#include "guc.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/guc.h"

char	   *es_metadata = NULL;
char	   *es_batch = NULL;
int			es_max_payload_size = 1024 * 1024;
int			es_max_stream_locks = 256;
int			es_command_retention = 7 * SECS_PER_DAY;
int			es_schedule_attempts = 10;
int			es_max_databases = 64;
int			es_notify_interval = 10;
int			es_watch_max_keys = 1000;
int			es_batch_interval = 100;
int			es_batch_size = 10000;
int			es_max_batch_size = 1000000;
int			es_max_projectors = 4;
int			es_rebuild_lock_timeout = 2000;
int			es_projector_synchronous_commit = SYNCHRONOUS_COMMIT_OFF;
bool		es_allow_destructive = false;
bool		es_workers = true;

uint64		es_metadata_generation = 1;
int64		es_batch_range_after = 0;
int64		es_batch_range_to = 0;

static const struct config_enum_entry synchronous_commit_options[] = {
	{"off", SYNCHRONOUS_COMMIT_OFF, false},
	{"local", SYNCHRONOUS_COMMIT_LOCAL_FLUSH, false},
	{"remote_write", SYNCHRONOUS_COMMIT_REMOTE_WRITE, false},
	{"on", SYNCHRONOUS_COMMIT_ON, false},
	{"remote_apply", SYNCHRONOUS_COMMIT_REMOTE_APPLY, false},
	{NULL, 0, false}
};

/*
 * Accept the empty string or a JSON object.
 */
static bool
check_metadata(char **newval, void **extra, GucSource source)
{
	const char *p = *newval;
	JsonLexContext *lex;
	JsonParseErrorType result;

	p += strspn(p, " \t\r\n");
	if (*p == '\0')
		return true;
	lex = es_json_lexer(*newval, strlen(*newval));
	result = pg_parse_json(lex, &nullSemAction);
	if (result != JSON_SUCCESS || *p != '{')
	{
		GUC_check_errdetail("The value must be a JSON object, for example '{\"user\": \"ann\"}'.");
		return false;
	}
	return true;
}

static void
assign_metadata(const char *newval, void *extra)
{
	es_metadata_generation++;
}

/*
 * Accept the empty string or two positions with a comma between them.
 */
static bool
check_batch(char **newval, void **extra, GucSource source)
{
	int64	   *range = (int64 *) es_guc_malloc(2 * sizeof(int64));
	long long	after = 0;
	long long	to = 0;
	int			used = 0;

	if (range == NULL)
		return false;
	if ((*newval)[0] != '\0' &&
		(sscanf(*newval, " %lld , %lld %n", &after, &to, &used) != 2 ||
		 (*newval)[used] != '\0' || after < 0 || to < after))
	{
		es_guc_free(range);
		GUC_check_errdetail("The value must be two positions, for example '100,200': the events behind 100 up to 200.");
		return false;
	}
	range[0] = after;
	range[1] = to;
	*extra = range;
	return true;
}

static void
assign_batch(const char *newval, void *extra)
{
	int64	   *range = (int64 *) extra;

	es_batch_range_after = range ? range[0] : 0;
	es_batch_range_to = range ? range[1] : 0;
}

/*
 * What the log itself goes by.
 */
static void
define_store_settings(void)
{
	DefineCustomStringVariable("es.metadata",
							   "JSON object merged into the metadata of every event of the session.",
							   "Keys of the event's own metadata win.",
							   &es_metadata, "",
							   PGC_USERSET, 0,
							   check_metadata, assign_metadata, NULL);
	DefineCustomStringVariable("es.batch",
							   "Range of positions that es_batch shows, to try a projection out by hand.",
							   "\"100,200\" stands for the events behind position 100 up to 200.",
							   &es_batch, "",
							   PGC_USERSET, GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE,
							   check_batch, assign_batch, NULL);
	DefineCustomIntVariable("es.max_payload_size",
							"Largest payload or metadata of an event, in its stored form.",
							NULL,
							&es_max_payload_size, 1024 * 1024, 64, 255 * 1024 * 1024,
							PGC_SUSET, GUC_UNIT_BYTE,
							NULL, NULL, NULL);
	DefineCustomIntVariable("es.max_stream_locks",
							"Streams and tags a transaction locks one by one before it locks them all at once.",
							NULL,
							&es_max_stream_locks, 256, 1, INT_MAX,
							PGC_SUSET, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("es.command_retention",
							"How long a command_id is remembered; 0 means for ever.",
							"A retry that comes later is a new command.",
							&es_command_retention, 7 * SECS_PER_DAY, 0, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_S,
							NULL, NULL, NULL);
	DefineCustomBoolVariable("es.allow_destructive",
							 "Allow events to be changed or removed.",
							 "Only for a superuser who knows why.",
							 &es_allow_destructive, false,
							 PGC_SUSET, GUC_NOT_IN_SAMPLE,
							 NULL, NULL, NULL);
}

/*
 * What is fixed when the server starts.  A later definition would be fatal, and
 * without shared memory idle.
 */
static void
define_server_settings(void)
{
	if (!process_shared_preload_libraries_in_progress)
		return;
	DefineCustomIntVariable("es.max_databases",
							"Databases of this cluster that can hold an event log.",
							NULL,
							&es_max_databases, 64, 1, 10000,
							PGC_POSTMASTER, 0,
							NULL, NULL, NULL);
	DefineCustomBoolVariable("es.workers",
							 "Run background workers: projections are applied and news announced.",
							 "Off for a physical copy that is not to act: it cannot be told from a standby that was promoted.",
							 &es_workers, true,
							 PGC_POSTMASTER, 0,
							 NULL, NULL, NULL);
}

/*
 * What the workers go by.
 */
static void
define_worker_settings(void)
{
	DefineCustomIntVariable("es.notify_interval",
							"Least time between two notifications of news.",
							"News after a quiet time are announced at once.",
							&es_notify_interval, 10, 0, 60000,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("es.watch_max_keys",
							"Changed keys of a watched table that are announced one by one.",
							"Where more have changed, listeners are told just that.",
							&es_watch_max_keys, 1000, 1, 100000,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("es.batch_interval",
							"How long a projector lets events gather for a batch while they pour in.",
							"It is shorter below a thousand events a second; an idle projector and es_wait() are served at once.",
							&es_batch_interval, 100, 0, 60000,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("es.batch_size",
							"Positions in one batch of a projection that sets no batch_size of its own.",
							NULL,
							&es_batch_size, 10000, 1, 10000000,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("es.max_batch_size",
							"Positions in one batch of a projection that is far behind or rebuilt.",
							"A projection's own batch_size goes before this.",
							&es_max_batch_size, 1000000, 1, 10000000,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("es.rebuild_lock_timeout",
							"How long the end of a rebuild waits for a lock.",
							"Where that is not enough, it is tried again later.",
							&es_rebuild_lock_timeout, 2000, 1, INT_MAX,
							PGC_SIGHUP, GUC_UNIT_MS,
							NULL, NULL, NULL);
	DefineCustomIntVariable("es.max_projectors",
							"Projector processes of a database.",
							"Every owner of projections gets one; what is left goes to partitions, backfills and rebuilds.",
							&es_max_projectors, 4, 1, 1024,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomIntVariable("es.schedule_attempts",
							"Attempts at a scheduled command before it counts as failed.",
							"One that is rejected (ES002) is not tried again.",
							&es_schedule_attempts, 10, 1, 1000,
							PGC_SIGHUP, 0,
							NULL, NULL, NULL);
	DefineCustomEnumVariable("es.projector_synchronous_commit",
							 "synchronous_commit of the workers that apply projections.",
							 "Off is safe: a crash loses read model and checkpoint together, and the events are applied again.",
							 &es_projector_synchronous_commit, SYNCHRONOUS_COMMIT_OFF,
							 synchronous_commit_options,
							 PGC_SIGHUP, 0,
							 NULL, NULL, NULL);
}

void
es_guc_init(void)
{
	define_server_settings();
	define_store_settings();
	define_worker_settings();
	MarkGUCPrefixReserved("es");
}
