--
-- es_create_command(), es_drop_command(), es_submit(): the plain mapping of a
-- command to an event.
--

-- What a statement gives, or the error that it raises.
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE statement INTO result;
	RETURN result;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
		hint = PG_EXCEPTION_HINT;
	RETURN format(E'%s: %s\n  detail: %s\n  hint: %s', SQLSTATE, message, detail, hint);
END
$$;
\pset format unaligned
\pset tuples_only on

\df es_create_command
\df es_drop_command
\df es_submit

--
-- Definitions
--

SELECT es_create_command('commands_create', 'commands', 'CREATED', creates => true);
SELECT es_create_command('commands_change', 'commands', 'CHANGED', creates => false);
SELECT es_create_command('commands_either', 'commands', 'HAPPENED', creates => NULL);
SELECT name, category, event_type, validate, creates, payload_type, owner = current_user AS mine
  FROM es_commands WHERE category = 'commands' ORDER BY name;

SELECT pg_temp.try($$SELECT es_create_command('commands_create', 'commands', 'OTHER')$$);
SELECT pg_temp.try($$SELECT es_create_command(NULL, 'commands', 'E')$$);
SELECT pg_temp.try($$SELECT es_create_command('', 'commands', 'E')$$);
SELECT pg_temp.try($$SELECT es_create_command(repeat('c', 513), 'commands', 'E')$$);
SELECT pg_temp.try($$SELECT es_create_command('commands_bad', NULL, 'E')$$);
SELECT pg_temp.try($$SELECT es_create_command('commands_bad', '', 'E')$$);
SELECT pg_temp.try($$SELECT es_create_command('commands_bad', repeat('c', 513), 'E')$$);
SELECT pg_temp.try($$SELECT es_create_command('commands_bad', 'comm-ands', 'E')$$);
SELECT pg_temp.try($$SELECT es_create_command('commands_bad', 'commands')$$);
SELECT pg_temp.try($$SELECT es_create_command('commands_bad', 'commands', '')$$);
SELECT pg_temp.try($$SELECT es_create_command('commands_bad', 'commands', repeat('E', 513))$$);
SELECT pg_temp.try($$SELECT es_create_command('commands_bad', 'commands', 'E', validate => 'no_such_function(jsonb, es.command)')$$);
-- A validator must take and return what it will be called with.
CREATE FUNCTION commands_v1(state jsonb) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION commands_v2(state json, command es.command) RETURNS void LANGUAGE sql AS '';
CREATE FUNCTION commands_v3(state jsonb, command es.command) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION commands_v4(state jsonb, command es.command) RETURNS SETOF void LANGUAGE sql AS '';
CREATE FUNCTION commands_v5(state jsonb, command es.command, more integer DEFAULT 1) RETURNS void LANGUAGE sql AS '';
CREATE PROCEDURE commands_v6(state jsonb, command es.command) LANGUAGE sql AS '';
SELECT pg_temp.try(format('SELECT es_create_command(%L, %L, %L, validate => %L::regprocedure)',
						  'commands_bad', 'commands', 'E', p.oid))
  FROM pg_proc p WHERE proname ~ '^commands_v\d$' ORDER BY proname;
DROP FUNCTION commands_v1, commands_v2, commands_v3, commands_v4, commands_v5;
DROP PROCEDURE commands_v6;
-- Names may be as long as others, and have anything in them.
SELECT es_create_command(repeat('é', 256), 'commands', 'E');
SELECT stream, version FROM es_submit(repeat('é', 256), 'long');
SELECT es_drop_command(repeat('é', 256));
SELECT es_create_command('It''s "odd" %s', 'commands', 'It''s "odd" %s');
SELECT stream, version FROM es_submit('It''s "odd" %s', 'It''s "odd" %s');
SELECT es_drop_command('It''s "odd" %s');
-- Names are compared byte by byte.
SELECT pg_temp.try($$SELECT * FROM es_submit('COMMANDS_CREATE', '1')$$);

--
-- es_submit
--

SELECT stream, version, events, duplicate, "position" AS mine
  FROM es_submit('commands_create', '1', '{"name": "ann"}') \gset
SELECT :'stream', :version, :events, :'duplicate', "position" = :mine AS same FROM es_stream(:'stream');
SELECT stream, version, events, duplicate FROM es_submit('commands_change', '1', '{"name": "bob"}', metadata => '{"user": "x"}');
SELECT stream, version, events, duplicate FROM es_submit(id => '1', command => 'commands_either');
SELECT version, category, type, payload, metadata FROM es_stream('commands-1');
-- An id may have dashes, the category cannot.
SELECT stream, version FROM es_submit('commands_create', 'a-b-c');
SELECT stream, category FROM es_stream('commands-a-b-c');

-- creates: true, false, either.
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', '1')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_change', '2')$$);
SELECT version FROM es_submit('commands_either', '2');
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', '2')$$);
SELECT version FROM es_submit('commands_change', '2');
-- What another way has appended counts as well.
SELECT version FROM es_append('commands-3', 'APPENDED');
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', '3')$$);
SELECT version FROM es_submit('commands_change', '3');

-- Expected version, before existence.
SELECT version FROM es_submit('commands_change', '3', expected_version => 2);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_change', '3', expected_version => 2)$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', '3', expected_version => 0)$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_change', '3', expected_version => -1)$$);
SELECT version FROM es_submit('commands_create', '4', expected_version => 0);

-- Bad input.
SELECT pg_temp.try($$SELECT version FROM es_submit(NULL, '1')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('', '1')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit(repeat('c', 513), '1')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_missing', '1')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_missing', NULL)$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', NULL)$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', '')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', repeat('i', 513))$$);
-- The stream's name has the limit: id and category together.
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', repeat('i', 504))$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', repeat('i', 503))$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', '5', '[]')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', '5', 'null')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', '5', metadata => '7')$$);
SET es.max_payload_size = 100;
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_create', '5', jsonb_build_object('a', repeat('x', 100)))$$);
RESET es.max_payload_size;
SELECT count(*) FROM es_stream('commands-5');
-- No payload is an empty one.
SELECT version FROM es_submit('commands_create', '5', NULL);
SELECT payload FROM es_stream('commands-5');

-- The session's metadata go with the event.
SET es.metadata = '{"user": "ann"}';
SELECT version FROM es_submit('commands_change', '5');
SELECT version FROM es_submit('commands_change', '5', metadata => '{"user": "bob", "why": 1}');
RESET es.metadata;
SELECT version, metadata FROM es_stream('commands-5');

-- Many in one statement, in order.
SELECT count(*), min(version), max(version)
  FROM generate_series(1, 100) n, es_submit('commands_either', '6', jsonb_build_object('n', n));
SELECT count(*) FROM es_stream('commands-6') WHERE (payload->>'n')::bigint = version;

-- Nothing is submitted where nothing can be appended.
BEGIN READ ONLY;
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_either', '7')$$);
COMMIT;

--
-- Changes of the definition take effect at once, and are rolled back
--

BEGIN;
SELECT es_drop_command('commands_either');
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_either', '7')$$);
SELECT es_create_command('commands_either', 'commands', 'HAPPENED_OTHERWISE');
SELECT version FROM es_submit('commands_either', '7');
SAVEPOINT a;
SELECT es_drop_command('commands_either');
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_either', '7')$$);
ROLLBACK TO a;
SELECT version FROM es_submit('commands_either', '7');
SELECT version, type FROM es_stream('commands-7');
ROLLBACK;
SELECT version FROM es_submit('commands_either', '7');
SELECT version, type FROM es_stream('commands-7');
BEGIN;
SELECT es_create_command('commands_new', 'commands', 'E');
SELECT version FROM es_submit('commands_new', '7');
ROLLBACK;
SELECT pg_temp.try($$SELECT version FROM es_submit('commands_new', '7')$$);

--
-- Dropping: by its owner, who is whoever created it; the events stay
--

SELECT pg_temp.try($$SELECT es_drop_command('commands_missing')$$);
SELECT pg_temp.try($$SELECT es_drop_command(NULL)$$);
SELECT pg_temp.try($$SELECT es_drop_command('')$$);
CREATE ROLE regress_es_owner;
CREATE ROLE regress_es_member IN ROLE regress_es_owner;
CREATE ROLE regress_es_other;
SELECT es_grant('regress_es_owner', 'admin'), es_grant('regress_es_other', 'admin');
SET ROLE regress_es_owner;
SELECT es_create_command('commands_owned', 'commands', 'E'), es_create_command('commands_owned2', 'commands', 'E');
SET ROLE regress_es_other;
SELECT pg_temp.try($$SELECT es_drop_command('commands_owned')$$);
SELECT pg_temp.try($$SELECT es_drop_command('commands_create')$$);
SET ROLE regress_es_member;
SELECT es_drop_command('commands_owned');
RESET ROLE;
SELECT name, owner FROM es_commands WHERE name LIKE 'commands_owned%';
SELECT es_drop_command('commands_owned2');
DROP OWNED BY regress_es_owner, regress_es_member, regress_es_other;
DROP ROLE regress_es_member, regress_es_owner, regress_es_other;

SELECT count(es_drop_command(name)::text) FROM es_commands WHERE category = 'commands';
SELECT count(*) FROM es_stream('commands-6');
SET es.allow_destructive = on;
DELETE FROM es.event WHERE category = 'commands';
