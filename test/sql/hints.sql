--
-- The version of a stream is what the log says, whatever its last appender has
-- left in shared memory.
--
CREATE DATABASE es_hints;
\c es_hints
SET client_min_messages = warning;
CREATE EXTENSION es;
\pset format unaligned
\pset tuples_only on

-- An append that is rolled back, as a whole or to a savepoint.
SELECT version FROM es_append('hint-1', 'A');
BEGIN;
SELECT version FROM es_append('hint-1', 'A');
ROLLBACK;
SELECT version FROM es_append('hint-1', 'A');
BEGIN;
SELECT version FROM es_append('hint-1', 'A');
SAVEPOINT s;
SELECT version FROM es_append('hint-1', 'A');
ROLLBACK TO s;
SELECT version FROM es_append('hint-1', 'A');
SAVEPOINT s;
SELECT version FROM es_append('hint-1', 'A');
RELEASE s;
COMMIT;
SELECT version FROM es_append('hint-1', 'A', expected_version => 5);

-- A row that was never committed gives its place to another stream's, and then
-- to one of the same stream.
BEGIN;
SELECT version FROM es_append('hint-2', 'A');
ROLLBACK;
VACUUM es.event;
SELECT version FROM es_append('hint-3', 'A');
SELECT version FROM es_append('hint-2', 'A');
BEGIN;
SELECT version FROM es_append('hint-2', 'A');
ROLLBACK;
VACUUM es.event;
SELECT version FROM es_append('hint-2', 'A');
SELECT version FROM es_append('hint-2', 'A');

-- A batch that is written in several chunks.
SELECT version FROM es_append_batch('hint-4', (SELECT jsonb_agg('{"type": "A"}'::jsonb) FROM generate_series(1, 600)));
SELECT version FROM es_append('hint-4', 'A');

-- The table is rewritten, so that rows of the same stream take each other's
-- places, some of which are gone.
SET es.allow_destructive = on;
DELETE FROM es.event WHERE stream = 'hint-1';
DELETE FROM es.event WHERE stream = 'hint-4' AND version BETWEEN 2 AND 9;
RESET es.allow_destructive;
SELECT version FROM es_append('hint-4', 'A');
VACUUM FULL es.event;
SELECT version FROM es_append('hint-4', 'A');
SELECT version FROM es_append('hint-4', 'A', expected_version => 603);
CREATE INDEX backwards ON es.event (stream, version DESC);
CLUSTER es.event USING backwards;
SELECT version FROM es_append('hint-4', 'A');

-- The newest event is taken away, others are put in, or all are replaced.
SET es.allow_destructive = on;
DELETE FROM es.event WHERE stream = 'hint-4' AND version = 605;
SELECT version FROM es_append('hint-4', 'A');
INSERT INTO es.event SELECT "position" + 100000, 606, recorded_at, stream, category, type, payload
  FROM es.event WHERE stream = 'hint-4' AND version = 605;
SELECT version FROM es_append('hint-4', 'A');
CREATE TABLE saved AS SELECT * FROM es.event ORDER BY stream, version;
INSERT INTO saved SELECT "position" + 200000, version + 1, recorded_at, stream, category, type, payload
  FROM saved WHERE stream = 'hint-2' AND version = 3;
TRUNCATE es.event;
SELECT version FROM es_append('hint-2', 'A');
TRUNCATE es.event;
INSERT INTO es.event SELECT * FROM saved;
SELECT version FROM es_append('hint-2', 'A');
SELECT version FROM es_append('hint-4', 'A');

-- Back comes the table that was there before, and with it its rows.
BEGIN;
SET LOCAL es.allow_destructive = on;
TRUNCATE es.event;
SELECT version FROM es_append_batch('hint-2', (SELECT jsonb_agg('{"type": "A"}'::jsonb) FROM generate_series(1, 3)));
ROLLBACK;
SELECT version FROM es_append('hint-2', 'A');
BEGIN;
SAVEPOINT s;
SET LOCAL es.allow_destructive = on;
TRUNCATE es.event;
SELECT version FROM es_append_batch('hint-2', (SELECT jsonb_agg('{"type": "A"}'::jsonb) FROM generate_series(1, 3)));
ROLLBACK TO s;
SELECT version FROM es_append('hint-2', 'A');
COMMIT;

-- Where even the triggers are evaded an append that expects a version looks
-- twice, and another one fails at the unique index, but not the next.
SELECT version FROM es_append('hint-4', 'A');
SET es.allow_destructive = on;
ALTER TABLE es.event DISABLE TRIGGER ALL;
INSERT INTO es.event SELECT "position" + 300000, version + 1, recorded_at, stream, category, type, payload
  FROM es.event WHERE (stream, version) IN (('hint-2', 7), ('hint-4', 609));
ALTER TABLE es.event ENABLE ALWAYS TRIGGER append_only, ENABLE ALWAYS TRIGGER append_only_row,
	ENABLE REPLICA TRIGGER append_only_apply;
RESET es.allow_destructive;
\set VERBOSITY sqlstate
SELECT version FROM es_append('hint-2', 'A', expected_version => 8);
SELECT version FROM es_append('hint-2', 'A', expected_version => 8);
SELECT version FROM es_append('hint-4', 'A');
SELECT version FROM es_append('hint-4', 'A');

-- In a new log of the same database nothing is left of the old one.
SET es.allow_destructive = on;
DROP EXTENSION es;
CREATE EXTENSION es;
SELECT version FROM es_append('hint-2', 'A');

\c contrib_regression
DROP DATABASE es_hints WITH (FORCE);
