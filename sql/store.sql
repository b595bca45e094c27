--
-- The store: the append-only log of events, the single source of truth.
--

-- Columns go from wide to variable so that no padding is stored.
CREATE TABLE es.event (
	"position"	bigint NOT NULL,
	version		bigint NOT NULL,
	recorded_at	timestamptz NOT NULL,
	stream		text COLLATE pg_catalog."C" NOT NULL,
	category	text COLLATE pg_catalog."C" NOT NULL,
	type		text COLLATE pg_catalog."C" NOT NULL,
	payload		jsonb NOT NULL,
	metadata	jsonb,
	CONSTRAINT event_pkey PRIMARY KEY ("position"),
	CONSTRAINT event_stream_version_key UNIQUE (stream, version)
);
CREATE INDEX event_category_position_idx ON es.event (category, "position");

COMMENT ON TABLE es.event IS 'The event log: append-only, written by es_append() and es_submit() alone.';
COMMENT ON COLUMN es.event."position" IS 'Place in the log: unique and rising; gaps are normal (rollbacks).';
COMMENT ON COLUMN es.event.version IS 'Place in the stream: 1, 2, 3 ... without a gap.';
COMMENT ON COLUMN es.event.recorded_at IS 'Wall-clock time of the append; order by position, not by this.';
COMMENT ON COLUMN es.event.stream IS 'The aggregate that the event belongs to, category-id.';
COMMENT ON COLUMN es.event.category IS 'What stands before the first "-" of the stream name, or the whole name.';
COMMENT ON COLUMN es.event.type IS 'What happened, for example ORDER_CREATED.';
COMMENT ON COLUMN es.event.payload IS 'The facts, a JSON object.';
COMMENT ON COLUMN es.event.metadata IS 'Who and why (user, correlation, causation), a JSON object, or NULL.';

CREATE TABLE es.tag (
	tag			text COLLATE pg_catalog."C" NOT NULL,
	"position"	bigint NOT NULL,
	CONSTRAINT tag_pkey PRIMARY KEY (tag, "position")
);
COMMENT ON TABLE es.tag IS 'The tags of events: one row for each tag of each tagged event.';

-- Shared memory hands out the positions one by one; the sequence is moved ahead
-- of them, many at a time.
CREATE SEQUENCE es.event_position AS bigint NO CYCLE;
COMMENT ON SEQUENCE es.event_position IS
	'Durable upper bound of the positions handed out; set ahead of them, 2048 at a time.';

-- The settled position for readers that cannot look into shared memory.
-- The scheduler inserts the row and moves it.
CREATE TABLE es.settled (
	one			boolean NOT NULL DEFAULT true,
	"position"	bigint NOT NULL,
	updated_at	timestamptz NOT NULL,
	CONSTRAINT settled_pkey PRIMARY KEY (one),
	CONSTRAINT settled_one_row CHECK (one)
) WITH (fillfactor = 50);
COMMENT ON TABLE es.settled IS
	'One row: the settled position for REPEATABLE READ, hot standbys and logical subscribers.';

-- No unique constraint: a restore adds the row of the database it came from,
-- and that foreign row is what tells a copy from the original.
CREATE TABLE es.identity (
	system_identifier	text NOT NULL,
	database			oid NOT NULL,
	activated_at		timestamptz NOT NULL
);
COMMENT ON TABLE es.identity IS
	'The database this log belongs to; where it is another one, workers wait for es_activate().';

CREATE TABLE es.command_log (
	command_id		uuid NOT NULL,
	"position"		bigint,
	version			bigint NOT NULL,
	submitted_at	timestamptz NOT NULL,
	fingerprint		bigint NOT NULL,
	events			integer NOT NULL,
	command			text COLLATE pg_catalog."C" NOT NULL,
	stream			text COLLATE pg_catalog."C" NOT NULL,
	CONSTRAINT command_log_pkey PRIMARY KEY (command_id)
);
COMMENT ON TABLE es.command_log IS
	'Results of commands and appends that came with a command_id, so that a retry gets the first result.';
COMMENT ON COLUMN es.command_log.fingerprint IS 'Hash of the payload: the same id with another payload is an error.';
CREATE INDEX command_log_submitted_at_idx ON es.command_log (submitted_at);

-- What is dumped has no foreign keys: pg_restore -j loads the tables of an
-- extension in any order.
SELECT pg_catalog.pg_extension_config_dump('es.event', '');
SELECT pg_catalog.pg_extension_config_dump('es.tag', '');
SELECT pg_catalog.pg_extension_config_dump('es.event_position', '');
SELECT pg_catalog.pg_extension_config_dump('es.command_log', '');
SELECT pg_catalog.pg_extension_config_dump('es.identity', '');

-- What a decider returns, and the elements of es_append_batch().
CREATE TYPE es.new_event AS (
	type		text,
	payload		jsonb,
	metadata	jsonb,
	tags		text[],
	stream		text
);
COMMENT ON TYPE es.new_event IS
	'An event to append; stream NULL means the stream of the command.';

--
-- Append-only
--

CREATE FUNCTION es.refuse_change() RETURNS trigger
	AS 'MODULE_PATHNAME', 'es_refuse_change' LANGUAGE C;
COMMENT ON FUNCTION es.refuse_change() IS
	'Trigger: refuses direct writes to the log unless es.allow_destructive is on; rows of a restore pass.';

-- The statement triggers speak even where no row matches.  Logical apply fires
-- row triggers only, and for its INSERT one that is not in the way of COPY: an
-- AFTER trigger, which ordinary sessions do not even look at.
CREATE TRIGGER append_only BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON es.event
	FOR EACH STATEMENT EXECUTE FUNCTION es.refuse_change();
CREATE TRIGGER append_only_row BEFORE UPDATE OR DELETE ON es.event
	FOR EACH ROW EXECUTE FUNCTION es.refuse_change();
CREATE TRIGGER append_only_apply AFTER INSERT ON es.event
	FOR EACH ROW EXECUTE FUNCTION es.refuse_change();
ALTER TABLE es.event ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE es.event ENABLE ALWAYS TRIGGER append_only_row;
ALTER TABLE es.event ENABLE REPLICA TRIGGER append_only_apply;

CREATE TRIGGER append_only BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON es.tag
	FOR EACH STATEMENT EXECUTE FUNCTION es.refuse_change();
CREATE TRIGGER append_only_row BEFORE UPDATE OR DELETE ON es.tag
	FOR EACH ROW EXECUTE FUNCTION es.refuse_change();
CREATE TRIGGER append_only_apply AFTER INSERT ON es.tag
	FOR EACH ROW EXECUTE FUNCTION es.refuse_change();
ALTER TABLE es.tag ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE es.tag ENABLE ALWAYS TRIGGER append_only_row;
ALTER TABLE es.tag ENABLE REPLICA TRIGGER append_only_apply;

-- Without its identity the log would take rows as from a restore; a new row
-- can only suspend the workers.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON es.identity
	FOR EACH STATEMENT EXECUTE FUNCTION es.refuse_change();
CREATE TRIGGER append_only_row BEFORE UPDATE OR DELETE ON es.identity
	FOR EACH ROW EXECUTE FUNCTION es.refuse_change();
ALTER TABLE es.identity ENABLE ALWAYS TRIGGER append_only;
ALTER TABLE es.identity ENABLE ALWAYS TRIGGER append_only_row;

--
-- Appending
--

CREATE FUNCTION es_append(
	stream text,
	type text,
	payload jsonb DEFAULT '{}',
	expected_version bigint DEFAULT NULL,
	metadata jsonb DEFAULT NULL,
	tags text[] DEFAULT NULL,
	command_id uuid DEFAULT NULL,
	OUT "position" bigint,
	OUT version bigint)
	RETURNS record
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_append(text, text, jsonb, bigint, jsonb, text[], uuid) IS
	'Append one event to a stream. expected_version: NULL any, 0 the stream must not exist, n it must be at n (else ES001). The same command_id again returns the first result.';

CREATE FUNCTION es_append_batch(
	stream text,
	events jsonb,
	expected_version bigint DEFAULT NULL,
	command_id uuid DEFAULT NULL,
	OUT first_position bigint,
	OUT last_position bigint,
	OUT version bigint)
	RETURNS record
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_append_batch(text, jsonb, bigint, uuid) IS
	'Append events [{"type":..., "payload":..., "metadata":..., "tags":[...]}, ...] to a stream: all or none, at consecutive versions.';

--
-- Reading
--

CREATE FUNCTION es_settled() RETURNS bigint
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_settled() IS
	'The settled position: no event at or below it can still appear. Call it in a statement before the one that reads.';

CREATE FUNCTION es_epoch() RETURNS text
	AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION es_epoch() IS
	'System identifier and timeline of this server: positions are comparable within one epoch only.';

CREATE FUNCTION es_read(
	after bigint DEFAULT 0,
	max_count integer DEFAULT 1000,
	category text DEFAULT NULL,
	types text[] DEFAULT NULL)
	RETURNS SETOF es.event
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 1000;
COMMENT ON FUNCTION es_read(bigint, integer, text, text[]) IS
	'Events behind a position in the order of the log, up to the settled position: never skips one that commits later.';

CREATE FUNCTION es_stream(
	stream text,
	from_version bigint DEFAULT 1,
	max_count integer DEFAULT NULL)
	RETURNS SETOF es.event
	AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL RESTRICTED ROWS 100;
COMMENT ON FUNCTION es_stream(text, bigint, integer) IS
	'The events of one stream in the order of their versions.';

CREATE FUNCTION es.stream_partition(stream text, partitions integer) RETURNS integer
	AS 'MODULE_PATHNAME', 'es_stream_partition' LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE;
COMMENT ON FUNCTION es.stream_partition(text, integer) IS
	'The partition, from 0 on, that a stream belongs to: hashtextextended(stream, 0), taken as unsigned, modulo partitions.';

--
-- Conditions across streams
--

CREATE FUNCTION es_read_matching(
	query jsonb,
	after bigint DEFAULT 0,
	max_count integer DEFAULT NULL)
	RETURNS SETOF es.event
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;
COMMENT ON FUNCTION es_read_matching(jsonb, bigint, integer) IS
	'Events that match {"items": [{"types": [...], "tags": [...]}, ...]}, up to the settled position: any item, any of its types, all of its tags.';

CREATE FUNCTION es_read_to() RETURNS bigint
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION es_read_to() IS
	'How far the last es_read_matching() of this session has read: the position to give to es_append_if().';

CREATE FUNCTION es_lock_matching(
	query jsonb,
	after bigint DEFAULT 0,
	max_count integer DEFAULT NULL)
	RETURNS SETOF es.event
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;
COMMENT ON FUNCTION es_lock_matching(jsonb, bigint, integer) IS
	'All committed events that match a query; nobody else appends one that matches until this transaction ends.';

CREATE FUNCTION es_append_if(
	events jsonb,
	fail_if_match jsonb,
	after bigint DEFAULT 0,
	command_id uuid DEFAULT NULL,
	OUT first_position bigint,
	OUT last_position bigint,
	OUT events_appended bigint)
	RETURNS record
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_append_if(jsonb, jsonb, bigint, uuid) IS
	'Append [{"stream":..., "type":..., "payload":..., "tags":[...]}, ...], all or none, unless an event that matches the query stands behind a position (ES004).';

--
-- The range of events that a projection applies
--

CREATE FUNCTION es.batch_after() RETURNS bigint
	AS 'MODULE_PATHNAME', 'es_batch_after' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION es.batch_after() IS 'The batch of this session begins behind this position.';

CREATE FUNCTION es.batch_to() RETURNS bigint
	AS 'MODULE_PATHNAME', 'es_batch_to' LANGUAGE C STABLE PARALLEL RESTRICTED;
COMMENT ON FUNCTION es.batch_to() IS 'The batch of this session ends with this position.';

CREATE FUNCTION es.batch_has("position" bigint, stream text, category text, type text)
	RETURNS boolean
	AS 'MODULE_PATHNAME', 'es_batch_has' LANGUAGE C STABLE STRICT PARALLEL RESTRICTED COST 1;
COMMENT ON FUNCTION es.batch_has(bigint, text, text, text) IS
	'Whether the filter of the projection being applied lets such an event through.';

-- With the rights of who asks: row security on es.event holds here too.
CREATE VIEW es_batch WITH (security_invoker = true) AS
	SELECT e."position", e.version, e.recorded_at, e.stream, e.category, e.type, e.payload, e.metadata
	  FROM es.event e
	 WHERE e."position" OPERATOR(pg_catalog.>) es.batch_after()
	   AND e."position" OPERATOR(pg_catalog.<=) es.batch_to()
	   AND es.batch_has(e."position", e.stream, e.category, e.type);
COMMENT ON VIEW es_batch IS
	'The events to apply now. By hand: SET es.batch = ''100,200'' shows the events behind 100 up to 200.';

-- A handler takes es.event, as evolve() of an aggregate does, and is called with
-- a row of the view.
CREATE FUNCTION es.batch_event(es_batch) RETURNS es.event
	LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
	RETURN ROW($1.*)::es.event;
COMMENT ON FUNCTION es.batch_event(es_batch) IS 'A row of es_batch as the event that it is.';
CREATE CAST (es_batch AS es.event) WITH FUNCTION es.batch_event(es_batch) AS IMPLICIT;

--
-- A copy of a database
--

CREATE FUNCTION es_activate() RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_activate() IS
	'Let the workers of a restored or cloned database run; until then a copy fires no side effects.';

