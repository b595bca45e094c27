/*-------------------------------------------------------------------------
 * catalog.h
 *	  Finding the extension's own tables, and running its own SQL on them.
 *-------------------------------------------------------------------------
 */
#ifndef ES_CATALOG_H
#define ES_CATALOG_H

#include "executor/spi.h"

typedef struct EsCatalog
{
	Oid			event;
	Oid			event_key;		/* unique index on position */
	Oid			event_stream;	/* unique index on (stream, version) */
	Oid			event_category; /* index on (category, position) */
	Oid			event_position; /* the sequence */
	Oid			tag;
	Oid			settled;
	Oid			identity;
	Oid			command_type;
	Oid			command_log;
	Oid			command_log_id; /* unique index on command_id */
	Oid			aggregate;
	Oid			snapshot;
	Oid			snapshot_key;	/* unique index on (stream, identity, version) */
	Oid			tag_key;		/* unique index on (tag, position) */
	Oid			projection;
	Oid			channel;
	Oid			change;
	Oid			extension;
	Oid			schema;			/* of the functions that users call */
	Oid			owner;			/* of the extension */
	char		version[64];	/* of the extension's SQL */
} EsCatalog;

/*
 * One of our own SQL statements, planned once a session.
 */
typedef struct EsStatement
{
	const char *sql;
	int			nargs;
	Oid			types[16];
	SPIPlanPtr	plan;
} EsStatement;

/* What defines a statement: its text, and the types of its parameters. */
#define ES_SQL(text_, nargs_, ...) \
	{.sql = (text_), .nargs = (nargs_), .types = {__VA_ARGS__}}

/*
 * What es_spi_begin() keeps for es_spi_end().  An error leaves it unused: the
 * (sub)transaction's end restores user and settings by itself.
 */
typedef struct EsSpi
{
	Oid			user;
	int			security;
	int			guc_level;
} EsSpi;

extern void es_catalog_init(void);
extern const EsCatalog *es_catalog(void);
extern const EsCatalog *es_catalog_if_exists(void);
extern const EsCatalog *es_catalog_cached(void);
extern const EsCatalog *es_catalog_locked(void);

extern void es_check_worker_role(Oid role, const char *wish, const char *reason);

extern void es_prepare(EsStatement *statement);
extern ParamListInfo es_params(EsStatement *statement, Datum *values,
							   const char *nulls);
extern uint64 es_run(EsStatement *statement, Datum *values, const char *nulls);
extern uint64 es_run_at(ItemPointer row, EsStatement *at, EsStatement *by_key,
						Datum *values);
extern uint64 es_run_latest(EsStatement *statement, Datum *values,
							const char *nulls);
extern void es_spi_begin(EsSpi *spi);
extern void es_spi_end(EsSpi *spi);
extern Datum es_spi_value(uint64 row, int column, bool *isnull);
extern char *es_spi_text(uint64 row, int column);

#endif							/* ES_CATALOG_H */
