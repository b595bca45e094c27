/*-------------------------------------------------------------------------
 * guc.h
 *	  The settings of the extension.
 *-------------------------------------------------------------------------
 */
#ifndef ES_GUC_H
#define ES_GUC_H

extern char *es_metadata;
extern char *es_batch;
extern int	es_max_payload_size;
extern int	es_max_stream_locks;
extern int	es_command_retention;
extern int	es_schedule_attempts;
extern int	es_max_databases;
extern int	es_notify_interval;
extern int	es_watch_max_keys;
extern int	es_batch_interval;
extern int	es_batch_size;
extern int	es_max_batch_size;
extern int	es_max_projectors;
extern int	es_rebuild_lock_timeout;
extern int	es_projector_synchronous_commit;
extern bool es_allow_destructive;
extern bool es_workers;

/* Counts the changes of es.metadata, so that its parsed form can be kept. */
extern uint64 es_metadata_generation;

/* The range that es.batch names, also set by whoever applies a batch. */
extern int64 es_batch_range_after;
extern int64 es_batch_range_to;

extern void es_guc_init(void);

#endif							/* ES_GUC_H */
