--
-- es_read(), es_stream(), es_settled(), es_epoch(), and es_batch by hand.
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

\df es_read
\df es_stream
\df es_settled
\df es_epoch

-- Positions as they come differ from run to run: the tests count from here.
SELECT es_settled() AS start \gset

SELECT version FROM es_append_batch('read-1',
	'[{"type": "A", "payload": {"n": 1}}, {"type": "B", "payload": {"n": 2}}, {"type": "A", "payload": {"n": 3}}]');
SELECT version FROM es_append('reading-1', 'A', '{"n": 4}');
SELECT version FROM es_append('read-2', 'C', '{"n": 5}', metadata => '{"user": "ann"}');
SELECT version FROM es_append('read-1', 'B', '{"n": 6}');

--
-- es_read
--

SELECT version, stream, category, type, payload, metadata FROM es_read(:start);
-- The row type is that of es.event.
SELECT (e).version, pg_typeof(e) FROM es_read(:start, 1) e;
SELECT version, payload FROM es_read(after => :start, max_count => 2);
SELECT version, payload FROM es_read(:start, 0);
SELECT count(*) FROM es_read(:start, NULL);
-- By category, by types, by both.
SELECT version, payload FROM es_read(:start, category => 'read');
SELECT version, payload FROM es_read(:start, 2, 'read');
SELECT version, payload FROM es_read(:start, types => '{A}');
SELECT version, payload FROM es_read(:start, 3, types => '{B,C}');
SELECT version, payload FROM es_read(:start, category => 'read', types => '{A,C}');
SELECT version, payload FROM es_read(:start, 1, 'read', '{C}');
SELECT count(*) FROM es_read(:start, category => 'no such');
SELECT count(*) FROM es_read(:start, types => '{}');
SELECT count(*) FROM es_read(:start, types => '{NULL}');
SELECT count(*) FROM es_read(:start, types => '{A,A,NULL}');
SELECT count(*) FROM es_read(:start, category => '');
-- Going on from the last position that one got.
SELECT set_config('read.start', :'start', false) IS NOT NULL;
DO $$
DECLARE
	last bigint := current_setting('read.start')::bigint;
	e es.event;
	events integer := 0;
BEGIN
	LOOP
		SELECT * INTO e FROM es_read(last, 1);
		EXIT WHEN NOT FOUND;
		events := events + 1;
		ASSERT e."position" > last;
		last := e."position";
	END LOOP;
	RAISE NOTICE '% events, one by one', events;
END
$$;
-- From before the beginning, from behind the end.
SELECT count(*) FROM es_read(-1, 1);
SELECT count(*) FROM es_read(NULL, 1);
SELECT count(*) FROM es_read(9223372036854775807);
SELECT count(*) FROM es_read(es_settled());
SELECT pg_temp.try($$SELECT count(*) FROM es_read(0, -1)$$);
-- Many times in one session, as a prepared plan turns generic.
SELECT count(*), sum(c) FROM generate_series(1, 20) i,
	LATERAL (SELECT count(*) AS c FROM es_read(:start + i * 0, category => 'read', types => '{A,C}')) s;
SELECT count(*), sum(c) FROM generate_series(1, 20) i,
	LATERAL (SELECT count(*) AS c FROM es_read(:start + i * 0)) s;

-- What this transaction has appended is not settled yet.
BEGIN;
SELECT version FROM es_append('read-3', 'D');
SELECT count(*) FROM es_read(:start, types => '{D}');
SELECT count(*) FROM es_stream('read-3');
COMMIT;
SELECT count(*) FROM es_read(:start, types => '{D}');

-- As a set in the select list, and under a cursor.
SELECT (es_read(:start, 2)).payload;
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT payload FROM es_read(:start);
FETCH 2 FROM c;
FETCH BACKWARD 1 FROM c;
CLOSE c;
COMMIT;

--
-- es_stream
--

SELECT version, type, payload FROM es_stream('read-1');
SELECT version, type, payload FROM es_stream('read-1', 3);
SELECT version, type, payload FROM es_stream('read-1', from_version => 2, max_count => 2);
SELECT version FROM es_stream('read-1', -5, 1);
SELECT version FROM es_stream('read-1', NULL, 1);
SELECT count(*) FROM es_stream('read-1', 1, 0);
SELECT count(*) FROM es_stream('read-1', 5);
SELECT count(*) FROM es_stream('read-1', 9223372036854775807);
SELECT count(*) FROM es_stream('read');
SELECT count(*) FROM es_stream('no such');
SELECT pg_temp.try($$SELECT count(*) FROM es_stream(NULL)$$);
SELECT pg_temp.try($$SELECT count(*) FROM es_stream('')$$);
SELECT pg_temp.try($$SELECT count(*) FROM es_stream(repeat('s', 513))$$);
SELECT pg_temp.try($$SELECT count(*) FROM es_stream('read-1', 1, -1)$$);
-- It is stable: the same snapshot as the statement that calls it.
BEGIN;
SELECT count(*) FROM es_append('read-4', 'A'), es_stream('read-4');
SELECT count(*) FROM es_stream('read-4');
ROLLBACK;
SELECT count(*) FROM es_stream('read-4');

--
-- es_settled, es_epoch
--

SELECT es_settled() >= max("position") AS all_settled FROM es.event;
BEGIN;
SELECT "position" FROM es_append('read-5', 'A') \gset
SELECT es_settled() = :position - 1 AS just_before_mine;
SELECT "position" AS second FROM es_append('read-5', 'A') \gset
SELECT es_settled() = :position - 1 AS just_before_mine;
SELECT pid = pg_backend_pid() AS me, first_position <= :position AS at_most_mine
  FROM es_stat_append;
ROLLBACK;
-- A rollback leaves a gap, which is settled too.
SELECT es_settled() >= :second AS settled;
SELECT count(*) FROM es_stat_append;
SELECT es_epoch() ~ '^\d+/\d+$' AS well_formed,
	   es_epoch() = format('%s/%s', system_identifier, timeline_id) AS this_server
  FROM pg_control_system(), pg_control_checkpoint();

-- In REPEATABLE READ and above the snapshot is older than any position that
-- could be computed; readers go by what the scheduler has written.
DO $$
BEGIN
	FOR i IN 1..1000 LOOP
		EXIT WHEN (SELECT "position" >= es_settled() FROM es.settled);
		PERFORM pg_sleep(0.01);
	END LOOP;
END
$$;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT es_settled() = (SELECT "position" FROM es.settled) AS as_written;
SELECT count(*) FROM es_read(:start, types => '{A,B,C,D}');
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY;
SELECT count(*) FROM es_read(:start, types => '{A,B,C,D}');
COMMIT;

-- What must not run in a parallel worker runs in the leader, also in a
-- transaction that has written.
CREATE TABLE read_big AS SELECT n FROM generate_series(1, 10000) n;
ANALYZE read_big;
SET max_parallel_workers_per_gather = 2;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
BEGIN;
SELECT version FROM es_append('read-6', 'A');
SELECT count(*) FROM read_big WHERE es_epoch() IS NOT NULL;
SELECT count(*), es_settled() > 0 FROM read_big;
SELECT count(*), es.suspended() FROM read_big;
SELECT count(*), (SELECT count(*) FROM es_stream('read-6')) FROM read_big;
SELECT count(*), (SELECT count(*) FROM es_stat_append) FROM read_big;
SELECT count(*), (SELECT count(*) FROM es_batch) FROM read_big;
ROLLBACK;
RESET max_parallel_workers_per_gather;
RESET parallel_setup_cost;
RESET parallel_tuple_cost;
RESET min_parallel_table_scan_size;
DROP TABLE read_big;

SET es.allow_destructive = on;
DELETE FROM es.event WHERE category IN ('read', 'reading');
