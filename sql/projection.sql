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
	keys			text[],
	start_after		bigint NOT NULL,
	on_error		text NOT NULL,
	search_path		text NOT NULL,
	paused			boolean NOT NULL DEFAULT false,
	created_at		timestamptz NOT NULL DEFAULT pg_catalog.now(),
	CONSTRAINT projection_pkey PRIMARY KEY (name),
	CONSTRAINT projection_mode_check CHECK (mode OPERATOR(pg_catalog.=) ANY (ARRAY['async', 'sync'])),
	CONSTRAINT projection_on_error_check
		CHECK (on_error OPERATOR(pg_catalog.=) ANY (ARRAY['stop', 'skip']))
);
COMMENT ON TABLE es.projection IS 'Definitions of projections; kept by es_create_projection().';

-- What moves with every batch is apart from what stays, so that updates are
-- HOT and small.
CREATE TABLE es.checkpoint (
	projection		text COLLATE pg_catalog."C" NOT NULL,
	rebuild			integer NOT NULL DEFAULT 0,
	partition		integer NOT NULL,
	"position"		bigint NOT NULL,
	revision		bigint NOT NULL DEFAULT 0,
	catching_up		boolean NOT NULL DEFAULT false,
	events_applied	bigint NOT NULL DEFAULT 0,
	batches			bigint NOT NULL DEFAULT 0,
	applied_at		timestamptz,
	retries			integer NOT NULL DEFAULT 0,
	error_position	bigint,
	error_at		timestamptz,
	error_sqlstate	text,
	error			text,
	CONSTRAINT checkpoint_pkey PRIMARY KEY (projection, rebuild, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE es.checkpoint IS
	'How far each partition of a projection has applied; moved in the transaction that writes its read model.';
COMMENT ON COLUMN es.checkpoint.rebuild IS '0 for what is served, else the rebuild (es.rebuild.id) that this belongs to.';
COMMENT ON COLUMN es.checkpoint.revision IS
	'Counts changes of the definition: a worker that knows another one learns it anew before it applies.';
COMMENT ON COLUMN es.checkpoint.catching_up IS
	'Far behind: applied in large batches, by a process of its own where there is one.';

CREATE TABLE es.dead_letter (
	projection		text COLLATE pg_catalog."C" NOT NULL,
	rebuild			integer NOT NULL DEFAULT 0,
	partition		integer NOT NULL,
	"position"		bigint NOT NULL,
	stream			text COLLATE pg_catalog."C" NOT NULL,
	version			bigint NOT NULL,
	type			text COLLATE pg_catalog."C" NOT NULL,
	status			text NOT NULL,
	attempts		integer NOT NULL DEFAULT 0,
	since			timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	tried_at		timestamptz,
	sqlstate		text,
	error			text,
	discarded_at	timestamptz,
	discarded_by	text,
	reason			text,
	CONSTRAINT dead_letter_pkey PRIMARY KEY (projection, rebuild, "position"),
	CONSTRAINT dead_letter_status_check
		CHECK (status OPERATOR(pg_catalog.=) ANY (ARRAY['failed', 'parked', 'discarded']))
);
CREATE INDEX dead_letter_stream_idx ON es.dead_letter (projection, rebuild, stream, "position")
	WHERE status OPERATOR(pg_catalog.<>) 'discarded';
COMMENT ON TABLE es.dead_letter IS
	'Events that a projection could not apply (failed), those of the same streams that wait behind them (parked), and those given up with es_discard().';

CREATE TABLE es.projection_error (
	projection		text COLLATE pg_catalog."C" NOT NULL,
	rebuild			integer NOT NULL,
	partition		integer NOT NULL,
	at				timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	"position"		bigint NOT NULL,
	sqlstate		text NOT NULL,
	error			text NOT NULL,
	context			text,
	CONSTRAINT projection_error_projection_fkey FOREIGN KEY (projection)
		REFERENCES es.projection (name) ON DELETE CASCADE
);
CREATE INDEX projection_error_at_idx ON es.projection_error (projection, at);
COMMENT ON TABLE es.projection_error IS 'The latest 100 errors of each projection.';

SELECT pg_catalog.pg_extension_config_dump('es.projection', '');
SELECT pg_catalog.pg_extension_config_dump('es.checkpoint', '');
SELECT pg_catalog.pg_extension_config_dump('es.dead_letter', '');

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
	on_error text DEFAULT 'stop',
	keys text[] DEFAULT NULL)
	RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_create_projection(
	text, text, text[], text[], text, integer, integer, regclass[], bigint, text, text[]) IS
	'Keep read models by running SQL over es_batch, each event exactly once, as the role that creates the projection.';

CREATE FUNCTION es_alter_projection(
	name text,
	mode text DEFAULT NULL,
	batch_size integer DEFAULT NULL,
	partitions integer DEFAULT NULL,
	on_error text DEFAULT NULL,
	query text DEFAULT NULL)
	RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_alter_projection(text, text, integer, integer, text, text) IS
	'Change what is not NULL of a projection, without losing or repeating an event; batch_size 0 goes back to es.batch_size.';

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

CREATE FUNCTION es_wait(
	"position" bigint,
	timeout interval DEFAULT '5 s')
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'es_wait_all' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION es_wait(bigint, interval) IS
	'Wait until every projection has applied a position: true when the next statement sees it, false after the timeout.';

--
-- Events that could not be applied
--

CREATE FUNCTION es_retry(projection text, "position" bigint) RETURNS bigint
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION es_retry(text, bigint) IS
	'Apply a failed event and what is parked behind it, in order; returns how many were applied.';

CREATE FUNCTION es_discard(projection text, "position" bigint, reason text) RETURNS bigint
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION es_discard(text, bigint, text) IS
	'Give up an event that cannot be applied, for a reason that is kept; what is parked behind it is applied, and how many were is returned.';
