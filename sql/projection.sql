--
-- Projections: SQL over es_batch that keeps read models.
--

CREATE TABLE es.projection (
	name			text COLLATE pg_catalog."C" NOT NULL,
	owner			regrole NOT NULL,
	query			text NOT NULL,
	categories		text[] COLLATE pg_catalog."C",
	types			text[] COLLATE pg_catalog."C",
	mode			text NOT NULL,
	partitions		integer NOT NULL,
	batch_size		integer,
	tables			regclass[],
	start_after		bigint NOT NULL,
	on_error		text NOT NULL,
	search_path		text NOT NULL,
	paused			boolean NOT NULL DEFAULT false,
	created_at		timestamptz NOT NULL DEFAULT pg_catalog.now(),
	CONSTRAINT projection_pkey PRIMARY KEY (name)
);
COMMENT ON TABLE es.projection IS 'Definitions of projections; kept by es_create_projection().';

-- What moves with every batch is apart from what stays, so that updates are
-- HOT and small.
CREATE TABLE es.checkpoint (
	projection		text COLLATE pg_catalog."C" NOT NULL,
	partition		integer NOT NULL,
	"position"		bigint NOT NULL,
	events_applied	bigint NOT NULL DEFAULT 0,
	batches			bigint NOT NULL DEFAULT 0,
	applied_at		timestamptz,
	retries			integer NOT NULL DEFAULT 0,
	error_position	bigint,
	error_at		timestamptz,
	error_sqlstate	text,
	error			text,
	CONSTRAINT checkpoint_pkey PRIMARY KEY (projection, partition),
	CONSTRAINT checkpoint_projection_fkey FOREIGN KEY (projection)
		REFERENCES es.projection (name) ON DELETE CASCADE
) WITH (fillfactor = 50);
COMMENT ON TABLE es.checkpoint IS
	'How far each projection has applied; moved in the transaction that writes its read model.';

SELECT pg_catalog.pg_extension_config_dump('es.projection', '');
SELECT pg_catalog.pg_extension_config_dump('es.checkpoint', '');

CREATE FUNCTION es_create_projection(
	name text,
	query text,
	categories text[] DEFAULT NULL,
	types text[] DEFAULT NULL,
	mode text DEFAULT 'async',
	partitions integer DEFAULT 1,
	batch_size integer DEFAULT NULL,
	tables regclass[] DEFAULT NULL,
	start_after bigint DEFAULT 0,
	on_error text DEFAULT 'stop')
	RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_create_projection(text, text, text[], text[], text, integer, integer, regclass[], bigint, text) IS
	'Keep read models by running SQL over es_batch, each event exactly once, as the role that creates the projection.';

CREATE FUNCTION es_drop_projection(name text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_drop_projection(text) IS 'Stop and forget a projection; its read models stay.';

CREATE FUNCTION es_pause(name text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_pause(text) IS 'Let a projection rest where it is, until es_resume().';

CREATE FUNCTION es_resume(name text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_resume(text) IS
	'Let a paused projection go on, or a stopped one try again at once.';

CREATE FUNCTION es_wait(
	projection text,
	"position" bigint,
	timeout interval DEFAULT '5 s')
	RETURNS boolean
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION es_wait(text, bigint, interval) IS
	'Wait until a projection has applied a position: true when the next statement sees it, false after the timeout.';
