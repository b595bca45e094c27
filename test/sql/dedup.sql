--
-- command_id: one command, one effect.
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

SELECT es_create_command('dedup_create', 'dedup', 'CREATED', creates => true);
SELECT es_create_command('dedup_change', 'dedup', 'CHANGED');

-- The same id again gets the first result, and nothing is appended.
SELECT stream, version, "position" AS p1, events, duplicate
  FROM es_submit('dedup_create', '1', '{"n": 1}', '00000000-0000-0000-0000-00000000d001') \gset
\echo :stream :version :events :duplicate
SELECT stream, version, "position" = :p1 AS same_position, events, duplicate
  FROM es_submit('dedup_create', '1', '{"n": 1}', '00000000-0000-0000-0000-00000000d001');
SELECT version FROM es_submit('dedup_change', '1', '{"n": 2}');
SELECT stream, version, "position" = :p1 AS same_position, events, duplicate
  FROM es_submit('dedup_create', '1', '{"n": 1}', '00000000-0000-0000-0000-00000000d001');
SELECT count(*) FROM es_stream('dedup-1');
-- What else came with the first one does not matter: expected version, metadata,
-- how the numbers of the payload are written.
SELECT version, duplicate FROM es_submit('dedup_create', '1', '{"n": 1.0}',
	'00000000-0000-0000-0000-00000000d001', 99, '{"user": "ann"}');
-- Without an id every command counts.
SELECT version, duplicate FROM es_submit('dedup_change', '1', '{"n": 2}', NULL);
SELECT version, duplicate FROM es_submit('dedup_change', '1', '{"n": 2}', command_id => NULL);

-- The same id for another command, aggregate or payload is an error.
SELECT pg_temp.try($$SELECT version FROM es_submit('dedup_change', '1', '{"n": 1}', '00000000-0000-0000-0000-00000000d001')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('dedup_create', '2', '{"n": 1}', '00000000-0000-0000-0000-00000000d001')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('dedup_create', '1', '{"n": 2}', '00000000-0000-0000-0000-00000000d001')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('dedup_create', '1', '{}', '00000000-0000-0000-0000-00000000d001')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('dedup_create', '1', '{}', 'no uuid')$$);
-- An unknown command is unknown, whatever its id.
SELECT pg_temp.try($$SELECT version FROM es_submit('dedup_unknown', '1', '{"n": 1}', '00000000-0000-0000-0000-00000000d001')$$);

-- A rejected command leaves its id free.
SELECT pg_temp.try($$SELECT version FROM es_submit('dedup_create', '1', '{"n": 3}', '00000000-0000-0000-0000-00000000d002')$$);
SELECT version, duplicate FROM es_submit('dedup_change', '1', '{"n": 3}', '00000000-0000-0000-0000-00000000d002');
-- So does one that is rolled back.
BEGIN;
SELECT version, duplicate FROM es_submit('dedup_change', '1', '{"n": 4}', '00000000-0000-0000-0000-00000000d003');
SELECT version, duplicate FROM es_submit('dedup_change', '1', '{"n": 4}', '00000000-0000-0000-0000-00000000d003');
ROLLBACK;
BEGIN;
SAVEPOINT a;
SELECT version, duplicate FROM es_submit('dedup_change', '1', '{"n": 5}', '00000000-0000-0000-0000-00000000d003');
ROLLBACK TO a;
SELECT version, duplicate FROM es_submit('dedup_change', '1', '{"n": 6}', '00000000-0000-0000-0000-00000000d003');
COMMIT;
SELECT version, duplicate FROM es_submit('dedup_change', '1', '{"n": 6}', '00000000-0000-0000-0000-00000000d003');

-- Twice in one statement.
SELECT (es_submit('dedup_change', '2', jsonb_build_object('n', 7 + 0 * n),
				  '00000000-0000-0000-0000-00000000d004')).duplicate
  FROM generate_series(1, 3) n;
SELECT count(*) FROM es_stream('dedup-2');

-- What a REPEATABLE READ transaction cannot see it finds all the same.
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT version, duplicate FROM es_submit('dedup_change', '2', '{"n": 7}', '00000000-0000-0000-0000-00000000d004');
SELECT version, duplicate FROM es_submit('dedup_change', '2', '{"n": 8}', '00000000-0000-0000-0000-00000000d005');
SELECT version, duplicate FROM es_submit('dedup_change', '2', '{"n": 8}', '00000000-0000-0000-0000-00000000d005');
COMMIT;

-- The command's definition may be gone or be another one since.
SELECT es_drop_command('dedup_create');
SELECT pg_temp.try($$SELECT version FROM es_submit('dedup_create', '1', '{"n": 1}', '00000000-0000-0000-0000-00000000d001')$$);
SELECT es_create_command('dedup_create', 'dedup', 'CREATED_ANEW', creates => true);
SELECT version, duplicate FROM es_submit('dedup_create', '1', '{"n": 1}', '00000000-0000-0000-0000-00000000d001');
SELECT es_drop_command('dedup_create');
SELECT es_create_command('dedup_create', 'dedupe', 'CREATED_ELSEWHERE', creates => true);
SELECT pg_temp.try($$SELECT version FROM es_submit('dedup_create', '1', '{"n": 1}', '00000000-0000-0000-0000-00000000d001')$$);

-- An id that came with many others: beyond es.max_stream_locks one lock stands
-- for all.
SET es.max_stream_locks = 5;
BEGIN;
SELECT count(*) AS commands, count(*) FILTER (WHERE duplicate) AS duplicates
  FROM generate_series(1, 200) n,
	   es_submit('dedup_change', '3', '{}', format('00000000-0000-0000-0000-0000000%s', 10000 + n % 100)::uuid);
SELECT locktype, mode, count(*) FROM pg_locks
 WHERE pid = pg_backend_pid() AND (classid = 'es.command_log'::regclass
	OR relation = 'es.command_log'::regclass AND mode <> 'AccessShareLock')
 GROUP BY 1, 2 ORDER BY 1, 2;
COMMIT;
RESET es.max_stream_locks;
SELECT count(*) FROM es_stream('dedup-3');

-- The result is kept beside the events.
SELECT l.command, l.stream, l.version, l.events, l."position" = e."position" AS same_position
  FROM es.command_log l JOIN es.event e USING (stream, version)
 WHERE l.stream IN ('dedup-1', 'dedup-2') ORDER BY e."position";

SELECT es_drop_command('dedup_create'), es_drop_command('dedup_change');
SET es.allow_destructive = on;
DELETE FROM es.event WHERE category = 'dedup';
DELETE FROM es.command_log WHERE command LIKE 'dedup%';
