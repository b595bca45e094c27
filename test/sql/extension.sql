--
-- CREATE and DROP EXTENSION, in a session that uses what they make and unmake.
--
-- In a database of its own, since a log is dropped.
\set database :DBNAME
SET client_min_messages = warning;
CREATE DATABASE regress_es_extension;
\c regress_es_extension
\pset format unaligned
\pset tuples_only on

-- What a session has planned, cached and counted, used once.
CREATE TYPE extension_payload AS (n integer);
CREATE PROCEDURE extension_use(stream text) LANGUAGE plpgsql AS $$
DECLARE
	s record;
BEGIN
	SELECT version INTO s FROM es_append(stream, 'A', '{"n": 1}', tags => '{x}');
	RAISE NOTICE 'appended at version %', s.version;
	SELECT version, duplicate INTO s FROM es_submit('extension', '1', '{"n": 1}', '00000000-0000-0000-0000-00000000ee01');
	RAISE NOTICE 'submitted: %', s;
	SELECT count(*) AS events, max(version) AS version INTO s FROM es_stream(stream);
	RAISE NOTICE 'in the stream: %', s;
	SELECT count(*) AS events, count(DISTINCT type) AS types INTO s FROM es.event;
	RAISE NOTICE 'in the log: %', s;
END
$$;
CREATE FUNCTION extension_seen() RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	settled bigint := es_settled();
BEGIN
	RETURN format('%s read, %s of category extension, %s of type A, %s in es_batch',
		(SELECT count(*) FROM es_read()), (SELECT count(*) FROM es_read(category => 'extension')),
		(SELECT count(*) FROM es_read(types => '{A}')), (SELECT count(*) FROM es_batch));
END
$$;

SELECT es_append('extension-0', 'A');
CALL extension_use('extension-0');

-- Created, used and rolled back.
BEGIN;
CREATE EXTENSION es;
SELECT es_create_command('extension', 'extension', 'SUBMITTED', payload_type => 'extension_payload');
CALL extension_use('extension-1');
SELECT first_position FROM es_stat_append;
ROLLBACK;
SELECT es_append('extension-0', 'A');
SELECT es_settled();
SET es.metadata = '{"user": "ann"}';

-- Created and used in one transaction: the log begins at position 1.
BEGIN;
CREATE EXTENSION es;
SELECT "position", version FROM es_append('extension-1', 'A');
SELECT es_create_command('extension', 'extension', 'SUBMITTED', payload_type => 'extension_payload');
CALL extension_use('extension-1');
SELECT extension_seen();
COMMIT;
SET es.batch = '0,100';
SELECT extension_seen();
CALL extension_use('extension-1');
SELECT extension_seen();
SELECT es.suspended();
RESET es.metadata;

-- Dropped and rolled back, in a transaction and in a subtransaction.
SET es.allow_destructive = on;
BEGIN;
DROP EXTENSION es;
SELECT es_settled();
ROLLBACK;
CALL extension_use('extension-1');
BEGIN;
CALL extension_use('extension-1');
SAVEPOINT a;
DROP EXTENSION es;
ROLLBACK TO a;
CALL extension_use('extension-1');
COMMIT;
SELECT max("position") - count(*) AS gaps FROM es.event;

-- Dropped and created anew in one transaction, and that rolled back.
SELECT max("position") AS last FROM es.event \gset
BEGIN;
SELECT "position" = :last + 1 AS next FROM es_append('extension-2', 'A');
DROP EXTENSION es;
CREATE EXTENSION es;
SELECT "position", version FROM es_append('extension-1', 'A');
SELECT es_create_command('extension', 'extension', 'SUBMITTED', payload_type => 'extension_payload');
CALL extension_use('extension-1');
SELECT extension_seen();
ROLLBACK;
SELECT "position" > :last AS later FROM es_append('extension-1', 'A');
CALL extension_use('extension-1');
BEGIN;
SAVEPOINT a;
DROP EXTENSION es;
CREATE EXTENSION es;
SELECT "position", version FROM es_append('extension-1', 'A');
ROLLBACK TO a;
SELECT "position" > :last AS later FROM es_append('extension-1', 'A');
COMMIT;
SELECT count(*) = count(DISTINCT "position") AS unique FROM es.event;
SELECT es_settled() >= max("position") AS settled FROM es.event;

-- The same, committed: another log, that is announced and written down.
SELECT es_create_projection('extension', 'SELECT FROM es_batch');
BEGIN;
DROP EXTENSION es;
CREATE EXTENSION es;
SELECT "position", version FROM es_append('extension-1', 'A');
SELECT es_create_command('extension', 'extension', 'SUBMITTED', payload_type => 'extension_payload');
COMMIT;
CALL extension_use('extension-1');
SELECT extension_seen();
CREATE TABLE extension_model (n bigint);
SELECT es_create_projection('extension', 'INSERT INTO extension_model SELECT "position" FROM es_batch');
SELECT es_wait('extension', (SELECT max("position") FROM es.event), '60 s');
SELECT * FROM extension_model ORDER BY n;
DO $$
BEGIN
	FOR i IN 1..6000 LOOP
		EXIT WHEN (SELECT "position" >= es_settled() FROM es.settled);
		PERFORM pg_sleep(0.01);
	END LOOP;
END
$$;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM es_read();
COMMIT;

-- In another schema.
DROP EXTENSION es;
CREATE SCHEMA extension_schema;
CREATE EXTENSION es SCHEMA extension_schema;
SELECT es_append('extension-1', 'A');
SELECT "position", version FROM extension_schema.es_append('extension-1', 'A');
SET search_path = extension_schema, public;
SELECT es_create_command('extension', 'extension', 'SUBMITTED', payload_type => 'extension_payload');
CALL extension_use('extension-1');
SELECT extension_seen();
SELECT es_create_projection('extension', 'INSERT INTO extension_model SELECT -"position" FROM es_batch');
SELECT es_wait('extension', (SELECT max("position") FROM es.event), '60 s');
SELECT * FROM extension_model WHERE n < 0 ORDER BY n DESC;
ALTER EXTENSION es SET SCHEMA public;
RESET search_path;

-- Without the extension nothing is left of it, and its workers go, sooner than the
-- minute after which they would look by themselves.
DROP EXTENSION es;
SELECT count(*) FROM pg_namespace WHERE nspname = 'es';
SELECT extension_seen();
DO $$
BEGIN
	FOR i IN 1..4000 LOOP
		EXIT WHEN NOT EXISTS (SELECT FROM pg_stat_activity
							   WHERE datname = current_database() AND backend_type LIKE 'es %');
		PERFORM pg_stat_clear_snapshot(), pg_sleep(0.01);
	END LOOP;
END
$$;
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type LIKE 'es %';

\c :database
DROP DATABASE regress_es_extension;
