--
-- es_batch by hand: the events that es.batch names.
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

\d+ es_batch

SELECT version FROM es_append_batch('batched-1',
	'[{"type": "A", "payload": {"n": 1}}, {"type": "B", "payload": {"n": 2}}, {"type": "A", "payload": {"n": 3}}]');
SELECT version FROM es_append('batched-2', 'A', '{"n": 4}');
-- Where the events lie: (p0, p4]; the third one is at p3.
SELECT "position" - 1 AS p0 FROM es_stream('batched-1', 1, 1) \gset
SELECT "position" AS p1 FROM es_stream('batched-1', 1, 1) \gset
SELECT "position" AS p3 FROM es_stream('batched-1', 3, 1) \gset
SELECT "position" AS p4 FROM es_stream('batched-2') \gset

-- Nothing, until it is set.
SHOW es.batch;
SELECT count(*) FROM es_batch;

SELECT set_config('es.batch', :'p0' || ',' || :'p4', false) = '' AS unset;
SELECT payload, stream, category, type, version FROM es_batch ORDER BY "position";
SELECT set_config('es.batch', :'p1' || ',' || :'p3', false) = '' AS unset;
SELECT payload FROM es_batch ORDER BY "position";
SELECT set_config('es.batch', '  ' || :'p3' || ' ,  ' || :'p4' || '  ', false) = '' AS unset;
SELECT payload FROM es_batch ORDER BY "position";
SELECT set_config('es.batch', :'p3' || ',' || :'p3', false) = '' AS unset;
SELECT count(*) FROM es_batch;
-- A range may end behind the log.
SELECT set_config('es.batch', :'p1' || ',9223372036854775807', false) = '' AS unset;
SELECT payload FROM es_batch ORDER BY "position";
SET es.batch = '';
SELECT count(*) FROM es_batch;

SELECT pg_temp.try($$SET es.batch = '1'$$);
SELECT pg_temp.try($$SET es.batch = '1,'$$);
SELECT pg_temp.try($$SET es.batch = ',2'$$);
SELECT pg_temp.try($$SET es.batch = '1,2,3'$$);
SELECT pg_temp.try($$SET es.batch = '1,2x'$$);
SELECT pg_temp.try($$SET es.batch = 'a,b'$$);
SELECT pg_temp.try($$SET es.batch = '2,1'$$);
SELECT pg_temp.try($$SET es.batch = '-1,1'$$);
SELECT pg_temp.try($$SET es.batch = ' '$$);

-- It is a setting like others: local to a transaction or a function, and
-- rolled back.
BEGIN;
SELECT set_config('es.batch', :'p0' || ',' || :'p1', true) = '' AS unset;
SELECT payload FROM es_batch;
COMMIT;
SELECT count(*) FROM es_batch;
BEGIN;
SAVEPOINT a;
SELECT set_config('es.batch', :'p0' || ',' || :'p1', false) = '' AS unset;
SELECT count(*) FROM es_batch;
ROLLBACK TO a;
SELECT count(*) FROM es_batch;
COMMIT;

-- Seen inside nested functions, by prepared statements and cached plans, and
-- where it changes between two executions.
CREATE FUNCTION batch_inner() RETURNS text LANGUAGE sql
	AS $$SELECT string_agg(payload->>'n', ' ' ORDER BY "position") FROM es_batch$$;
CREATE FUNCTION batch_outer() RETURNS text LANGUAGE plpgsql
	AS $$BEGIN RETURN 'inside: ' || coalesce(batch_inner(), 'nothing'); END$$;
CREATE FUNCTION batch_handler(e es.event) RETURNS text LANGUAGE plpgsql
	AS $$BEGIN RETURN e.type || (e.payload->>'n') || ' version ' || e.version; END$$;
PREPARE batch_prepared AS SELECT count(*) FROM es_batch;
SELECT batch_outer();
EXECUTE batch_prepared;
SELECT set_config('es.batch', :'p0' || ',' || :'p3', false) = '' AS unset;
SELECT batch_outer();
EXECUTE batch_prepared;
SELECT set_config('es.batch', :'p1' || ',' || :'p4', false) = '' AS unset;
SELECT batch_outer() FROM generate_series(1, 8);
EXECUTE batch_prepared;
-- Its rows are events: a handler takes es.event.
SELECT batch_handler(e) FROM es_batch e ORDER BY "position";
SELECT bool_and(e::es.event = s) AS same
  FROM es_batch e JOIN es.event s USING ("position");

-- A projection's query, tried out.
CREATE TABLE batch_model (stream text PRIMARY KEY, total integer);
INSERT INTO batch_model
	SELECT stream, sum((payload->>'n')::integer) FROM es_batch GROUP BY stream
	ON CONFLICT (stream) DO UPDATE SET total = batch_model.total + excluded.total;
SELECT * FROM batch_model ORDER BY 1;

-- Whoever sees the view sees no more than it shows, and cannot write by it.
SELECT pg_temp.try($$INSERT INTO es_batch (type) VALUES ('A')$$);
SELECT pg_temp.try($$UPDATE es_batch SET type = 'X'$$);
SELECT pg_temp.try($$DELETE FROM es_batch$$);
CREATE ROLE regress_es_reader;
SET ROLE regress_es_reader;
SELECT pg_temp.try($$SELECT count(*) FROM es_batch$$);
SELECT pg_temp.try($$SELECT es.batch_after()$$);
RESET ROLE;
DROP ROLE regress_es_reader;

-- The range is an index range scan, however long the log is.
SET enable_seqscan = off;
EXPLAIN (COSTS off) SELECT * FROM es_batch;
RESET enable_seqscan;

DISCARD ALL;
SELECT count(*) FROM es_batch;
DROP TABLE batch_model;
DROP FUNCTION batch_inner, batch_outer, batch_handler;
SET es.allow_destructive = on;
DELETE FROM es.event WHERE category = 'batched';
