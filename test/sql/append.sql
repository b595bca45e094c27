--
-- es_append(): every parameter, its default, its limits and its errors.
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

\df es_append

-- Defaults, by position and by name.
SELECT version FROM es_append('append-1', 'A');
SELECT version FROM es_append(type => 'B', stream => 'append-1');
SELECT version FROM es_append('append-1', 'C', '{"n": 1}', 2, '{"user": "ann"}', ARRAY['x', 'y']);
SELECT version, stream, category, type, payload, metadata,
	   recorded_at BETWEEN now() - interval '1 hour' AND clock_timestamp() AS in_time
  FROM es.event WHERE stream = 'append-1' ORDER BY version;

-- The result is a row (position, version), and positions rise with versions.
SELECT bool_and("position" > before) AS rising
  FROM (SELECT "position", lag("position") OVER (ORDER BY version) AS before
		  FROM es_stream('append-1')) s;
SELECT version FROM es_append('append-1', 'D');
SELECT pg_typeof(r."position"), pg_typeof(r.version) FROM es_append('append-1', 'E') r;
SELECT (es_append('append-1', 'F')).version;

--
-- The category rule
--

SELECT version FROM es_append('append', 'WHOLE_NAME');
SELECT version FROM es_append('append-', 'EMPTY_ID');
SELECT version FROM es_append('append-a-b', 'TWO_DASHES');
SELECT version FROM es_append('append ä–x-1', 'ODD_NAME');
SELECT stream, category FROM es.event
 WHERE type IN ('WHOLE_NAME', 'EMPTY_ID', 'TWO_DASHES', 'ODD_NAME') ORDER BY "position";
SELECT pg_temp.try($$SELECT version FROM es_append('-1', 'A')$$);
SELECT pg_temp.try($$SELECT version FROM es_append('-', 'A')$$);

--
-- Names: 1 to 512 bytes, not characters
--

SELECT pg_temp.try($$SELECT version FROM es_append(NULL, 'A')$$);
SELECT pg_temp.try($$SELECT version FROM es_append('', 'A')$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-2', NULL)$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-2', '')$$);
SELECT pg_temp.try($$SELECT version FROM es_append(rpad('append-', 512, 'x'), rpad('T', 512, 'x'))$$);
SELECT pg_temp.try($$SELECT version FROM es_append(rpad('append-', 513, 'x'), 'A')$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-2', rpad('T', 513, 'x'))$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-' || repeat('é', 252) || 'x', repeat('é', 256))$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-' || repeat('é', 253), 'A')$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-2', repeat('é', 256) || 'x')$$);
SELECT octet_length(stream), octet_length(type)
  FROM es.event WHERE stream LIKE 'append-%' AND octet_length(stream) = 512 ORDER BY "position";

-- Names are compared byte by byte.
SELECT version FROM es_append('append-Case', 'A');
SELECT version FROM es_append('append-case', 'A');
SELECT version FROM es_append('append-case ', 'A');

--
-- Expected versions
--

SELECT version FROM es_append('append-3', 'A', expected_version => 0);
SELECT version FROM es_append('append-3', 'A', expected_version => 1);
SELECT version FROM es_append('append-3', 'A', expected_version => NULL);
SELECT pg_temp.try($$SELECT version FROM es_append('append-3', 'A', expected_version => 0)$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-3', 'A', expected_version => 2)$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-3', 'A', expected_version => 4)$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-missing', 'A', expected_version => 1)$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-3', 'A', expected_version => 9223372036854775807)$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-3', 'A', expected_version => -1)$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-3', 'A', expected_version => -9223372036854775808)$$);
SELECT version FROM es_append('append-3', 'A', expected_version => 3);

--
-- Payload and metadata: objects of a bounded size
--

SELECT pg_temp.try($$SELECT version FROM es_append('append-4', 'A', NULL)$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-4', 'A', '[]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-4', 'A', '1')$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-4', 'A', 'null')$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-4', 'A', 'no json')$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-4', 'A', '{"a": "\u0000"}')$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-4', 'A', metadata => '[1]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-4', 'A', metadata => 'null')$$);
SET es.max_payload_size = 100;
SELECT version FROM es_append('append-4', 'A', jsonb_build_object('a', repeat('x', 83)));
SELECT pg_temp.try($$SELECT version FROM es_append('append-4', 'A', jsonb_build_object('a', repeat('x', 84)))$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-4', 'A', metadata => jsonb_build_object('a', repeat('x', 88)))$$);
RESET es.max_payload_size;
-- Long enough to be stored out of line, of one kind that compresses well and of
-- one that does not.
SELECT version FROM es_append('append-5', 'LONG', jsonb_build_object('long', repeat('x', 1000000)));
SELECT version FROM es_append('append-5', 'LONG',
	(SELECT jsonb_object_agg(n, md5(n::text)) FROM generate_series(1, 10000) n),
	metadata => (SELECT jsonb_object_agg(n, md5(n::text)) FROM generate_series(1, 5000) n));
SELECT version, length(payload->>'long'), payload->>'10000' = md5('10000') AS payload_same,
	   metadata->>'5000' = md5('5000') AS metadata_same
  FROM es_stream('append-5');
SELECT pg_relation_size(reltoastrelid) > 0 AS out_of_line FROM pg_class WHERE oid = 'es.event'::regclass;
SELECT pg_temp.try($$SELECT version FROM es_append('append-5', 'LONG', jsonb_build_object('long', repeat('x', 1100000)))$$);
-- An argument that is itself stored out of line.
CREATE TABLE append_source AS
	SELECT 'append-6'::text || repeat('y', 400) AS stream, repeat('T', 500) AS type,
		   (SELECT jsonb_object_agg(n, md5(n::text)) FROM generate_series(1, 5000) n) AS payload;
SELECT version FROM append_source s, es_append(s.stream, s.type, s.payload, metadata => s.payload);
SELECT e.payload = s.payload AND e.metadata = s.payload AS same
  FROM append_source s, LATERAL es_stream(s.stream) e;
-- Nested as deep as JSON itself may be here.
SELECT pg_temp.try($$SELECT version FROM es_append('append-4', 'DEEP',
	jsonb_build_object('deep', (repeat('[', 1000) || repeat(']', 1000))::jsonb))$$);

--
-- Tags
--

SELECT version FROM es_append('append-7', 'TAGGED', tags => ARRAY['b', 'a', 'b', 'ä']);
SELECT version FROM es_append('append-7', 'TAGGED', tags => '{}');
SELECT version FROM es_append('append-7', 'TAGGED', tags => NULL);
SELECT version FROM es_append('append-7', 'TAGGED', tags => '{{c,d},{e,c}}');
SELECT e.version, t.tag FROM es.tag t JOIN es.event e USING ("position")
 WHERE e.stream = 'append-7' ORDER BY 1, 2;
SELECT pg_temp.try($$SELECT version FROM es_append('append-7', 'TAGGED', tags => ARRAY['a', NULL])$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-7', 'TAGGED', tags => ARRAY[''])$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-7', 'TAGGED', tags => ARRAY[rpad('t', 512, 't')])$$);
SELECT pg_temp.try($$SELECT version FROM es_append('append-7', 'TAGGED', tags => ARRAY[rpad('t', 513, 't')])$$);

--
-- es.metadata: what the session adds to the metadata of its events
--

SET es.metadata = '{"user": "ann", "correlation": "c1"}';
SELECT version FROM es_append('append-8', 'A');
SELECT version FROM es_append('append-8', 'A', metadata => '{}');
SELECT version FROM es_append('append-8', 'A', metadata => '{"user": "bob", "extra": [1]}');
SELECT version FROM es_append('append-8', 'A', metadata => '{"user": null}');
BEGIN;
SET LOCAL es.metadata = '{"local": true}';
SELECT version FROM es_append('append-8', 'A');
COMMIT;
SELECT version FROM es_append('append-8', 'A');
BEGIN;
SAVEPOINT a;
SET LOCAL es.metadata = '{"rolled": "back"}';
ROLLBACK TO a;
SELECT version FROM es_append('append-8', 'A');
COMMIT;
SET es.metadata = '';
SELECT version FROM es_append('append-8', 'A');
SET es.metadata = '  {"spaces": "around"}  ';
SELECT version FROM es_append('append-8', 'A');
SET es.metadata = '   ';
SELECT version FROM es_append('append-8', 'A');
RESET es.metadata;
CREATE FUNCTION append_with_setting(stream text) RETURNS bigint LANGUAGE sql
	SET es.metadata = '{"function": "append_with_setting"}'
	AS 'SELECT version FROM es_append(stream, ''A'')';
SELECT append_with_setting('append-8');
SELECT version FROM es_append('append-8', 'A');
SELECT version, metadata FROM es_stream('append-8');

-- It must be an object, and what jsonb refuses it refuses at once.
SELECT pg_temp.try($$SET es.metadata = '[1]'$$);
SELECT pg_temp.try($$SET es.metadata = '"text"'$$);
SELECT pg_temp.try($$SET es.metadata = '{"user": '$$);
SELECT pg_temp.try($$SET es.metadata = '{"user": "ann"} {}'$$);
SELECT pg_temp.try($$SET es.metadata = '{"user": "\u0000"}'$$);
SHOW es.metadata;
-- Together they must not be too large.
SET es.max_payload_size = 100;
SET es.metadata = '{"a": "0123456789012345678901234567890123456789"}';
SELECT version FROM es_append('append-8', 'A');
SELECT pg_temp.try($$SELECT version FROM es_append('append-8', 'A', metadata => '{"b": "0123456789012345678901234567890123456789"}')$$);
RESET es.max_payload_size;
RESET es.metadata;

--
-- Several appends in one statement, in functions and in triggers
--

SELECT count(*), min(version), max(version), count(DISTINCT "position")
  FROM generate_series(1, 200) n, es_append('append-9', 'MANY', jsonb_build_object('n', n));
SELECT count(*) AS in_order FROM es_stream('append-9') WHERE (payload->>'n')::bigint = version;
SELECT es_append('append-9', 'A') IS NOT NULL, es_append('append-9', 'B') IS NOT NULL,
	   (SELECT version FROM es_append('append-9', 'C'));
WITH a AS (SELECT * FROM es_append('append-9', 'D')), b AS (SELECT * FROM es_append('append-9', 'E'))
SELECT a.version, b.version FROM a, b;
SELECT max(version), count(*) FROM es_stream('append-9');

CREATE FUNCTION append_in_block() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	v bigint;
BEGIN
	PERFORM es_append('append-10', 'KEPT');
	FOR i IN 1..3 LOOP
		BEGIN
			SELECT version INTO v FROM es_append('append-10', 'ROLLED_BACK');
			IF i = 2 THEN
				SELECT version INTO v FROM es_append('append-10', 'A', expected_version => 0);
			END IF;
			RAISE EXCEPTION 'at %', v;
		EXCEPTION
			WHEN raise_exception THEN PERFORM es_append('append-10', 'AFTER_RAISE');
			WHEN SQLSTATE 'ES001' THEN PERFORM es_append('append-10', 'AFTER_CONFLICT');
		END;
	END LOOP;
	RETURN (SELECT string_agg(version || ' ' || type, ', ' ORDER BY version) FROM es_stream('append-10'));
END
$$;
SELECT append_in_block();
SELECT version, type FROM es_stream('append-10');

CREATE TABLE append_customers (id integer PRIMARY KEY, name text);
CREATE FUNCTION append_from_trigger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	PERFORM es_append('append-c' || NEW.id, TG_OP, to_jsonb(NEW));
	RETURN NEW;
END
$$;
CREATE TRIGGER append AFTER INSERT OR UPDATE ON append_customers
	FOR EACH ROW EXECUTE FUNCTION append_from_trigger();
INSERT INTO append_customers SELECT n, 'c' || n FROM generate_series(1, 3) n;
UPDATE append_customers SET name = upper(name) WHERE id < 3;
SELECT stream, version, type, payload->>'name' FROM es.event
 WHERE stream LIKE 'append-c_' ORDER BY stream, version;

-- Whoever appends in the middle of his own work finds lastval() as it was, also
-- as a role without a right to our sequence.
CREATE ROLE regress_es_clerk;
SELECT es_grant('regress_es_clerk', 'writer');
CREATE TABLE append_numbered (id serial, name text);
GRANT ALL ON append_numbered, append_numbered_id_seq TO regress_es_clerk;
SET ROLE regress_es_clerk;
INSERT INTO append_numbered (name) VALUES ('a'), ('b');
SELECT count(es_append('append-12', 'MANY')) FROM generate_series(1, 2500);
SELECT lastval();
RESET ROLE;
DROP TABLE append_numbered;
DROP OWNED BY regress_es_clerk;
DROP ROLE regress_es_clerk;

-- A cursor and a prepared statement.
PREPARE append_prepared (text, jsonb) AS SELECT version FROM es_append($1, 'PREPARED', $2);
EXECUTE append_prepared('append-11', '{"n": 1}');
EXECUTE append_prepared('append-11', '{"n": 2}');
SELECT pg_temp.try($$EXECUTE append_prepared('append-11', '[]')$$);
EXECUTE append_prepared('append-11', '{"n": 3}');
DEALLOCATE append_prepared;

DROP TABLE append_source, append_customers;
DROP FUNCTION append_with_setting, append_in_block, append_from_trigger;
SET es.allow_destructive = on;
DELETE FROM es.tag WHERE "position" IN (SELECT "position" FROM es.event WHERE category LIKE 'append%');
DELETE FROM es.event WHERE category LIKE 'append%';
