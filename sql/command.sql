--
-- Commands: requests to change something, validated and decided in the server.
--

-- Functions are kept as text, schema-qualified with their argument types:
-- pg_upgrade refuses tables that hold regprocedure.
CREATE TABLE es.command_type (
	name			text COLLATE pg_catalog."C" NOT NULL,
	category		text COLLATE pg_catalog."C" NOT NULL,
	event_type		text COLLATE pg_catalog."C",
	validate		text,
	decide			text,
	creates			boolean,
	payload_type	regtype,
	search_path		text NOT NULL,
	owner			regrole NOT NULL,
	created_at		timestamptz NOT NULL DEFAULT pg_catalog.now(),
	CONSTRAINT command_type_pkey PRIMARY KEY (name)
);
COMMENT ON TABLE es.command_type IS 'The commands that es_submit() knows; kept by es_create_command().';
COMMENT ON COLUMN es.command_type.search_path IS
	'That of the session that created the command; validate and decide are called with it.';

CREATE TABLE es.aggregate (
	category		text COLLATE pg_catalog."C" NOT NULL,
	evolve			text NOT NULL,
	initial_state	jsonb NOT NULL,
	snapshot_every	integer NOT NULL,
	search_path		text NOT NULL,
	owner			regrole NOT NULL,
	created_at		timestamptz NOT NULL DEFAULT pg_catalog.now(),
	CONSTRAINT aggregate_pkey PRIMARY KEY (category)
);
COMMENT ON TABLE es.aggregate IS
	'How the events of a category become the state of each stream; kept by es_create_aggregate().';

-- Not dumped: snapshots are made anew as commands are submitted.
CREATE TABLE es.snapshot (
	version			bigint NOT NULL,
	identity		bigint NOT NULL,
	"position"		bigint NOT NULL,
	taken_at		timestamptz NOT NULL,
	stream			text COLLATE pg_catalog."C" NOT NULL,
	state			jsonb NOT NULL,
	CONSTRAINT snapshot_pkey PRIMARY KEY (stream, identity, version)
);
COMMENT ON TABLE es.snapshot IS
	'States of streams, kept so that a fold need not begin at version 1; can be dropped at any time.';
COMMENT ON COLUMN es.snapshot.identity IS
	'Hash of the evolve function and the initial state: a snapshot made with others is not used.';

CREATE TABLE es.command_grant (
	command			text COLLATE pg_catalog."C" NOT NULL,
	grantee			regrole NOT NULL,
	CONSTRAINT command_grant_pkey PRIMARY KEY (command, grantee)
);
COMMENT ON TABLE es.command_grant IS
	'Who may submit a command besides its owner and the writers; kept by es_grant_command().';

CREATE TABLE es.schedule (
	due				timestamptz NOT NULL,
	next_at			timestamptz,
	created_at		timestamptz NOT NULL DEFAULT pg_catalog.now(),
	error_at		timestamptz,
	id				uuid NOT NULL,
	owner			regrole NOT NULL,
	attempts		integer NOT NULL DEFAULT 0,
	command			text COLLATE pg_catalog."C" NOT NULL,
	aggregate_id	text COLLATE pg_catalog."C" NOT NULL,
	payload			jsonb NOT NULL,
	metadata		jsonb,
	error_sqlstate	text,
	error			text,
	CONSTRAINT schedule_pkey PRIMARY KEY (id)
);
CREATE INDEX schedule_owner_next_at_idx ON es.schedule (owner, next_at)
	WHERE next_at IS NOT NULL;
COMMENT ON TABLE es.schedule IS
	'Commands that wait until they are due, and those that failed; one that was submitted is gone.';
COMMENT ON COLUMN es.schedule.id IS 'The command_id that it is submitted with.';
COMMENT ON COLUMN es.schedule.next_at IS 'When it is tried next; NULL: never again, it failed.';

SELECT pg_catalog.pg_extension_config_dump('es.command_type', '');
-- The worker would not know a role that was dropped.
SELECT pg_catalog.pg_extension_config_dump('es.schedule',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) owner)');
SELECT pg_catalog.pg_extension_config_dump('es.aggregate', '');
-- A role that was dropped would be dumped as a number, perhaps that of another.
SELECT pg_catalog.pg_extension_config_dump('es.command_grant',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) grantee)');

-- What validators and deciders are given.
CREATE TYPE es.command AS (
	name			text,
	id				text,
	stream			text,
	version			bigint,
	payload			jsonb,
	metadata		jsonb,
	command_id		uuid,
	submitted_by	text,
	submitted_at	timestamptz
);
COMMENT ON TYPE es.command IS
	'A submitted command; version is that of its stream before the command, 0 where it does not exist.';

CREATE FUNCTION es_create_command(
	name text,
	category text,
	event_type text DEFAULT NULL,
	validate regprocedure DEFAULT NULL,
	decide regprocedure DEFAULT NULL,
	creates boolean DEFAULT NULL,
	payload_type regtype DEFAULT NULL)
	RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_create_command(
	text, text, text, regprocedure, regprocedure, boolean, regtype) IS
	'Define a command on the aggregates of a category, that becomes one event_type or what decide returns. creates: true the aggregate must not exist, false it must, NULL either.';

CREATE FUNCTION es_drop_command(name text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_drop_command(text) IS 'Forget a command; its events stay.';

CREATE FUNCTION es_create_aggregate(
	category text,
	evolve regprocedure,
	initial_state jsonb DEFAULT '{}',
	snapshot_every integer DEFAULT 100)
	RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_create_aggregate(text, regprocedure, jsonb, integer) IS
	'Say how events become the state of each stream of a category: evolve(state jsonb, event es.event) returns the next state.';

CREATE FUNCTION es_drop_aggregate(category text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_drop_aggregate(text) IS
	'Forget how events become a state, and the snapshots; the events stay.';

CREATE FUNCTION es_drop_snapshots(category text) RETURNS bigint
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_drop_snapshots(text) IS
	'Drop the snapshots of an aggregate and return their number; nothing is lost but time.';

CREATE FUNCTION es_state(
	stream text,
	at_version bigint DEFAULT NULL,
	at_time timestamptz DEFAULT NULL)
	RETURNS jsonb
	AS 'MODULE_PATHNAME' LANGUAGE C STABLE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_state(text, bigint, timestamptz) IS
	'The state of a stream: now, at a version, or as it was at a time (by recorded_at).';

-- Whoever changes the log itself (es.allow_destructive) makes snapshots wrong.
CREATE FUNCTION es.forget_snapshots() RETURNS trigger
	AS 'MODULE_PATHNAME', 'es_forget_snapshots' LANGUAGE C;
COMMENT ON FUNCTION es.forget_snapshots() IS
	'Trigger: drops all snapshots when the log itself was changed.';
CREATE TRIGGER forget_snapshots AFTER UPDATE OR DELETE OR TRUNCATE ON es.event
	FOR EACH STATEMENT EXECUTE FUNCTION es.forget_snapshots();
ALTER TABLE es.event ENABLE ALWAYS TRIGGER forget_snapshots;

CREATE FUNCTION es_submit(
	command text,
	id text,
	payload jsonb DEFAULT '{}',
	command_id uuid DEFAULT NULL,
	expected_version bigint DEFAULT NULL,
	metadata jsonb DEFAULT NULL,
	OUT stream text,
	OUT version bigint,
	OUT "position" bigint,
	OUT events integer,
	OUT duplicate boolean)
	RETURNS record
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_submit(text, text, jsonb, uuid, bigint, jsonb) IS
	'Submit a command to aggregate id; it becomes events or is rejected (ES002). The same command_id again returns the first result.';

CREATE FUNCTION es_grant_command("role" regrole, command text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION es_grant_command(regrole, text) IS
	'Let a role submit one command; writers may submit all.';

CREATE FUNCTION es_revoke_command("role" regrole, command text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE STRICT PARALLEL UNSAFE;
COMMENT ON FUNCTION es_revoke_command(regrole, text) IS
	'Take back what es_grant_command() gave.';

--
-- Timers
--

CREATE FUNCTION es_schedule(
	command text,
	id text,
	payload jsonb,
	due timestamptz,
	command_id uuid DEFAULT NULL,
	metadata jsonb DEFAULT NULL)
	RETURNS uuid
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_schedule(text, text, jsonb, timestamptz, uuid, jsonb) IS
	'Submit a command at a time, exactly once, as the calling role; returns its command_id, by which es_cancel() takes it back.';

CREATE FUNCTION es_cancel(id uuid) RETURNS boolean
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_cancel(uuid) IS
	'Take a scheduled command back, or a failed one away; false where it is not scheduled (any more).';
