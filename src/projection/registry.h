/*-------------------------------------------------------------------------
 * registry.h
 *	  Projections as they are defined.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_REGISTRY_H
#define ES_PROJECTION_REGISTRY_H

#include "catalog.h"
#include "executor/spi.h"
#include "nodes/pg_list.h"
#include "store/read.h"
#include "utils/timestamp.h"

/* Most partitions of a projection. */
#define ES_MAX_PARTITIONS	256

/*
 * What was learnt about the size of its batches (worker/pace.c).
 */
typedef struct EsPace
{
	bool		warm;			/* not the first batch any more */
	int			size;			/* positions in the best batch so far */
	double		rate;			/* how many for a ms of the processor; or 0 */
	double		per_ms;			/* how many a ms passed with, lately */
	int			stage;			/* of what is tried next */
	bool		moved;			/* another size was better once */
	int			stayed;			/* batches since something else was tried */
	int			patience;		/* how many there shall be */
	int			larger;			/* a larger size that seemed no gain */
	double		larger_rate;
} EsPace;

/*
 * A partition of a projection, or of a rebuild of one, as whoever applies it
 * holds it.
 */
typedef struct EsProjection
{
	char	   *name;
	Oid			owner;
	char	   *query;
	char	   *search_path;	/* finds the shadows first, in a rebuild */
	char	   *served_path;	/* never does */
	int			ntables;
	Oid		   *tables;			/* those that it declares */
	EsFilter	filter;
	bool		filtered;		/* the filter is not empty */
	int			partition;
	int			partitions;
	int			rebuild;		/* id of the rebuild, or 0 */
	bool		filling;		/* the shadow tables of the rebuild are there */
	bool		merging;		/* and were near the end */
	int			batch_size;		/* 0: as the settings say */
	bool		skips_errors;
	bool		sync;
	bool		paused;
	int64		start_after;
	int64		revision;		/* of the definition that this is */
	bool		catching_up;	/* far behind */

	int64		position;		/* the checkpoint, as last seen */
	ItemPointerData checkpoint; /* where its row was last; or invalid */
	int			limit;			/* positions in the next batch; 0: no limit */
	int64		attempt_after;	/* the batch tried last */
	int64		attempt_to;
	bool		whole;			/* what was tried is not about some events */
	int64		suspect_to;		/* some event up to here fails; or 0 */
	int64		fill_first;		/* merge no rebuild before this position */
	int			retries;		/* failures in a row of what stops it */
	int64		error_position; /* where it stopped, when that was read; or 0 */
	int			collisions;		/* deadlocks and the like in a row */
	TimestampTz retry_at;		/* not before then; 0 at once */
	TimestampTz served_at;		/* when its last batch began */
	uint64		turn;			/* of its worker, when that was */
	uint64		round;			/* the same of its worker's rounds */
	EsPace		pace;			/* of one that is far behind */
	bool		mine;			/* this worker's share */

	SPIPlanPtr	plan;			/* kept only where keep_plan says so */
	bool		keep_plan;
	int			running;		/* calls of the query under way: it may append */
	int64		planned_for;	/* positions in the batch it was planned for */
	int64		events_run;		/* positions that the query has run over */
	int64		replan_at;		/* plan anew when there are more */
} EsProjection;

/*
 * A role that owns projections, and how many processes can serve them.
 */
typedef struct EsOwner
{
	Oid			role;
	int			processes;
	int			granted;		/* how many of these it gets */
} EsOwner;

extern void es_projection_registry_init(void);
extern uint64 es_projections_generation(void);
extern void es_projections_changed(void);
extern List *es_projections_of(Oid owner);
extern List *es_sync_projections(void);
extern List *es_projection_partitions(const char *name);
extern List *es_rebuild_partitions(int rebuild);
extern List *es_projection_owners(void);

#endif							/* ES_PROJECTION_REGISTRY_H */
