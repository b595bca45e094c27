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
	creates			boolean,
	payload_type	regtype,
	owner			regrole NOT NULL,
	created_at		timestamptz NOT NULL DEFAULT pg_catalog.now(),
	CONSTRAINT command_type_pkey PRIMARY KEY (name)
);
COMMENT ON TABLE es.command_type IS 'The commands that es_submit() knows; kept by es_create_command().';

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
	'Results of commands that came with a command_id, so that a retry gets the first result.';
COMMENT ON COLUMN es.command_log.fingerprint IS 'Hash of the payload: the same id with another payload is an error.';

CREATE TABLE es.command_grant (
	command			text COLLATE pg_catalog."C" NOT NULL,
	grantee			regrole NOT NULL,
	CONSTRAINT command_grant_pkey PRIMARY KEY (command, grantee),
	CONSTRAINT command_grant_command_fkey FOREIGN KEY (command)
		REFERENCES es.command_type (name) ON DELETE CASCADE
);
COMMENT ON TABLE es.command_grant IS
	'Who may submit a command besides its owner and the writers; kept by es_grant_command().';

SELECT pg_catalog.pg_extension_config_dump('es.command_type', '');
SELECT pg_catalog.pg_extension_config_dump('es.command_log', '');
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
COMMENT ON FUNCTION es_create_command(text, text, text, regprocedure, regprocedure, boolean, regtype) IS
	'Define a command on the aggregates of a category. creates: true the aggregate must not exist, false it must, NULL either.';

CREATE FUNCTION es_drop_command(name text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_drop_command(text) IS 'Forget a command; its events stay.';

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
