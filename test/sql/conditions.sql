--
-- Conditions across streams: reading what matches a query over types and tags,
-- and appending if nothing further does.  The examples are those of dcb.events.
--
CREATE FUNCTION conditions_try(statement text) RETURNS text LANGUAGE plpgsql AS $$
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
	RETURN regexp_replace(format(E'%s: %s\n  detail: %s\n  hint: %s', SQLSTATE, message, detail, hint),
						  'position \d+', 'position N', 'g');
END
$$;
\pset format unaligned
\pset tuples_only on
SELECT es_settled() AS start \gset
-- Types of what matches, behind the start.
CREATE FUNCTION conditions_types(query jsonb, after bigint, max_count integer DEFAULT NULL)
	RETURNS text LANGUAGE sql VOLATILE AS $$
	SELECT string_agg(type || ' of ' || stream, ', ' ORDER BY "position")
	  FROM es_read_matching(query, after, max_count)
$$;

--
-- Queries
--
SELECT first_position > 0, last_position - first_position, events_appended
  FROM es_append_if('[
	{"stream": "course-1", "type": "COURSE_DEFINED", "payload": {"capacity": 2}, "tags": ["course:1"]},
	{"stream": "course-2", "type": "COURSE_DEFINED", "payload": {"capacity": 1}, "tags": ["course:2", "course:2"]},
	{"stream": "student-1", "type": "STUDENT_REGISTERED", "tags": ["student:1"]},
	{"stream": "course-1", "type": "SUBSCRIBED", "tags": ["course:1", "student:1"]},
	{"stream": "course-1", "type": "NOTED", "metadata": {"by": "ann"}}]', NULL);
SELECT stream, version, type, payload, metadata FROM es.event WHERE "position" > :start ORDER BY "position";
-- One tag; all of several; one type of several; one item of several, each event once.
SELECT conditions_types('{"items": [{"tags": ["course:1"]}]}', :start);
SELECT conditions_types('{"items": [{"tags": ["student:1", "course:1"]}]}', :start);
SELECT conditions_types('{"items": [{"tags": ["student:1", "course:2"]}]}', :start);
SELECT conditions_types('{"items": [{"types": ["SUBSCRIBED", "NOTED"]}]}', :start);
SELECT conditions_types('{"items": [{"types": ["SUBSCRIBED", "NOTED"], "tags": ["course:1"]}]}', :start);
SELECT conditions_types('{"items": [{"tags": ["course:1"]}, {"types": ["SUBSCRIBED"]},
	{"types": ["COURSE_DEFINED"], "tags": []}]}', :start);
SELECT conditions_types('{"items": [{"types": ["NOTHING"]}, {"tags": ["none"]}]}', :start);
-- How far that has read: up to the settled position, or to the last event
-- where there may be more.
SELECT es_read_to() = es_settled();
SELECT conditions_types('{"items": [{"tags": ["course:1"]}]}', :start, 1);
SELECT es_read_to() = (SELECT min("position") FROM es.event WHERE "position" > :start);
SELECT conditions_types('{"items": [{"tags": ["course:1"]}]}', es_read_to());
SELECT conditions_types('{"items": [{"tags": ["course:1"]}]}', es_read_to());
SELECT conditions_types('{"items": [{"tags": ["course:1"]}]}', 7, 0), es_read_to();
-- The decision that locks, and sees what its own transaction has appended.
BEGIN;
SELECT version FROM es_append('course-1', 'RENAMED', tags => '{course:1}');
SELECT string_agg(type, ', ' ORDER BY "position")
  FROM es_lock_matching('{"items": [{"tags": ["course:1"]}]}', :start);
SELECT conditions_types('{"items": [{"tags": ["course:1"]}]}', :start);
SELECT count(*), sum((mode = 'ExclusiveLock')::int), sum((mode = 'ShareLock')::int) FROM pg_locks
 WHERE pid = pg_backend_pid() AND classid = 'es.tag'::regclass;
ROLLBACK;

--
-- What is no query, what is no event
--
SELECT conditions_try(format('SELECT FROM es_read_matching(%L)', query)) FROM unnest(ARRAY[
	NULL, '[]', '1', '{}', '{"item": []}', '{"items": []}', '{"items": {}}', '{"items": [1]}',
	'{"items": [{}]}', '{"items": [{"types": [], "tags": []}]}', '{"items": [{"tag": ["a"]}]}',
	'{"items": [{"tags": ["a"]}, {"tags": "b"}]}', '{"items": [{"tags": [1]}]}',
	'{"items": [{"types": [null]}]}', '{"items": [{"tags": [""]}]}',
	'{"items": [{"tags": ["a"]}], "after": 1}']) query;
SELECT conditions_try($$SELECT FROM es_read_matching('{"items": [{"tags": ["a"]}]}', -1)$$);
SELECT conditions_try($$SELECT FROM es_read_matching('{"items": [{"tags": ["a"]}]}', 0, -1)$$);
SELECT conditions_try(format('SELECT FROM es_append_if(%L, NULL)', events)) FROM unnest(ARRAY[
	NULL, '[]', '{}', '[{"type": "T"}]', '[{"type": "T", "stream": 1}]', '[{"stream": "s-1"}]',
	'[{"type": "T", "stream": "s-1", "tags": "a"}]', '[{"type": "T", "stream": "s-1", "tag": ["a"]}]',
	'[{"type": "T", "stream": ""}]', '[{"type": "T", "stream": "s-1", "tags": [""]}]',
	'[{"type": "T", "stream": "s-1"}, {"type": "T", "stream": "s-2", "payload": []}]']) events;
SELECT conditions_try($$SELECT FROM es_append_if('[{"type": "T", "stream": "s-1"}]', '{"items": 1}')$$);
SELECT conditions_try($$SELECT FROM es_append_batch('s-1', '[{"type": "T", "stream": "s-1"}]')$$);
SELECT count(*) FROM es.event WHERE stream LIKE 's-%';

--
-- Conditions
--
SELECT conditions_try($$SELECT events_appended FROM es_append_if('[{"stream": "course-1", "type": "COURSE_DEFINED",
	"tags": ["course:1"]}]', '{"items": [{"types": ["COURSE_DEFINED"], "tags": ["course:3"]},
	{"types": ["COURSE_DEFINED"], "tags": ["course:1"]}]}')$$);
SELECT conditions_try($$SELECT events_appended FROM es_append_if('[{"stream": "course-3", "type": "COURSE_DEFINED",
	"tags": ["course:3"]}]', '{"items": [{"types": ["COURSE_DEFINED"], "tags": ["course:3"]}]}')$$);
SELECT conditions_try($$SELECT events_appended FROM es_append_if('[{"stream": "course-3", "type": "COURSE_DEFINED",
	"tags": ["course:3"]}]', '{"items": [{"types": ["COURSE_DEFINED"], "tags": ["course:3"]}]}')$$);
-- Only behind the position; types alone; tags alone; an item of which only a part matches.
SELECT conditions_try(format($$SELECT events_appended FROM es_append_if('[{"stream": "course-3", "type": "RENAMED"}]',
	'{"items": [{"tags": ["course:3"]}, {"types": ["COURSE_DEFINED"]}]}', %s)$$, es_settled()));
SELECT conditions_try($$SELECT events_appended FROM es_append_if('[{"stream": "course-3", "type": "RENAMED"}]',
	'{"items": [{"types": ["RENAMED"]}]}')$$);
SELECT conditions_try($$SELECT events_appended FROM es_append_if('[{"stream": "course-3", "type": "RENAMED"}]',
	'{"items": [{"tags": ["course:1", "student:1"]}]}')$$);
SELECT conditions_try($$SELECT events_appended FROM es_append_if('[{"stream": "course-3", "type": "RENAMED"}]',
	'{"items": [{"tags": ["course:3", "student:1"]}, {"types": ["SUBSCRIBED"], "tags": ["course:3"]}]}')$$);
-- All or none.
SELECT conditions_try($$SELECT events_appended FROM es_append_if('[{"stream": "course-4", "type": "T"},
	{"stream": "course-5", "type": ""}]', NULL)$$);
SELECT count(*) FROM es.event WHERE stream IN ('course-4', 'course-5');
-- A transaction sees its own events, and so does its condition.
BEGIN;
SELECT version FROM es_append('user-1', 'NAMED', tags => '{name:ann}');
SELECT conditions_try($$SELECT events_appended FROM es_append_if('[{"stream": "user-2", "type": "NAMED",
	"tags": ["name:ann"]}]', '{"items": [{"tags": ["name:ann"]}]}')$$);
ROLLBACK;
-- More locks than may be held become one.
SET es.max_stream_locks = 10;
BEGIN;
SELECT events_appended FROM es_append_if(
	(SELECT jsonb_agg(jsonb_build_object('stream', 'many-' || i, 'type', 'T', 'tags', ARRAY['many:' || i]))
	   FROM generate_series(1, 100) i),
	(SELECT jsonb_build_object('items', jsonb_agg(jsonb_build_object('tags', ARRAY['many:' || i])))
	   FROM generate_series(1, 100) i));
SELECT count(*) <= 11, bool_or(relation = 'es.event'::regclass AND mode = 'ShareRowExclusiveLock')
  FROM pg_locks
 WHERE pid = pg_backend_pid() AND (classid IN ('es.tag'::regclass, 'es.event'::regclass)
	   OR mode = 'ShareRowExclusiveLock');
COMMIT;
-- Those that it has are not counted twice.
BEGIN;
SELECT events_appended FROM es_append_if(
	'[{"stream": "many-1", "type": "T", "tags": ["many:a", "many:b", "many:c", "many:d"]}]',
	'{"items": [{"tags": ["many:a"]}]}');
SELECT count(*), bool_or(mode = 'ShareRowExclusiveLock') FROM pg_locks
 WHERE pid = pg_backend_pid() AND (classid IN ('es.tag'::regclass, 'es.event'::regclass)
	   OR mode = 'ShareRowExclusiveLock');
COMMIT;
RESET es.max_stream_locks;

--
-- One command_id for every way to append
--
SELECT "position" AS p, version FROM es_append('once-1', 'A', '{"n": 1}',
	command_id => '00000000-0000-0000-0000-00000000d001') \gset
SELECT "position" = :p, version FROM es_append('once-1', 'A', '{"n": 1}', expected_version => 0,
	command_id => '00000000-0000-0000-0000-00000000d001');
SELECT conditions_try($$SELECT version FROM es_append('once-1', 'A', '{"n": 2}',
	command_id => '00000000-0000-0000-0000-00000000d001')$$);
SELECT conditions_try($$SELECT version FROM es_append('once-1', 'B', '{"n": 1}',
	command_id => '00000000-0000-0000-0000-00000000d001')$$);
SELECT conditions_try($$SELECT version FROM es_append_batch('once-1', '[{"type": "A"}]',
	command_id => '00000000-0000-0000-0000-00000000d001')$$);
SELECT first_position AS f, last_position AS l, version AS v
  FROM es_append_batch('once-1', '[{"type": "A"}, {"type": "B"}, {"type": "C"}]',
	command_id => '00000000-0000-0000-0000-00000000d002') \gset
SELECT first_position = :f, last_position = :l, version = :v
  FROM es_append_batch('once-1', '[{"type": "A"}, {"type": "B"}, {"type": "C"}]',
	command_id => '00000000-0000-0000-0000-00000000d002');
SELECT first_position AS f, last_position AS l
  FROM es_append_if('[{"stream": "once-1", "type": "D", "tags": ["once"]}, {"stream": "once-2", "type": "D"}]',
	'{"items": [{"tags": ["once"]}]}', command_id => '00000000-0000-0000-0000-00000000d003') \gset
-- A retry gets the first result although the condition has failed since, by it.
SELECT first_position = :f, last_position = :l, events_appended
  FROM es_append_if('[{"stream": "once-1", "type": "D", "tags": ["once"]}, {"stream": "once-2", "type": "D"}]',
	'{"items": [{"tags": ["once"]}]}', command_id => '00000000-0000-0000-0000-00000000d003');
SELECT stream, max(version) FROM es.event WHERE category = 'once' GROUP BY stream ORDER BY stream;
-- An append that failed has used up nothing.
SELECT conditions_try($$SELECT version FROM es_append('once-1', 'E', expected_version => 1,
	command_id => '00000000-0000-0000-0000-00000000d004')$$);
SELECT version FROM es_append('once-1', 'E', expected_version => 5,
	command_id => '00000000-0000-0000-0000-00000000d004');

--
-- Timers: what is wrong is said when a command is scheduled
--
SELECT es_create_command('REMIND', 'reminder', 'REMINDED', payload_type => NULL);
SET es.metadata = '{"user": "ann", "session": 7}';
SELECT es_schedule('REMIND', '1', '{"n": 1}', '2099-01-01', '00000000-0000-0000-0000-00000000e001',
	metadata => '{"session": 8}');
RESET es.metadata;
SELECT es_schedule('REMIND', '1', '{"n": 1}', '2099-01-02', '00000000-0000-0000-0000-00000000e001');
SELECT es_schedule('REMIND', '2', NULL, '2098-01-01') IS NOT NULL;
SELECT command, aggregate_id, due AT TIME ZONE 'UTC', status, attempts, payload, metadata
  FROM es_schedules ORDER BY aggregate_id;
SELECT conditions_try($$SELECT es_schedule('REMIND', '1', '{"n": 2}', '2099-01-01',
	'00000000-0000-0000-0000-00000000e001')$$);
SELECT conditions_try(format('SELECT es_schedule(%s)', arguments)) FROM unnest(ARRAY[
	$$'NONE', '1', '{}', '2099-01-01'$$, $$NULL, '1', '{}', '2099-01-01'$$,
	$$'REMIND', '', '{}', '2099-01-01'$$, $$'REMIND', '1', '[]', '2099-01-01'$$,
	$$'REMIND', '1', '{}', NULL$$, $$'REMIND', '1', '{}', 'infinity'$$,
	$$'REMIND', '1', '{}', '2099-01-01', NULL, '[1]'$$]) arguments;
CREATE ROLE regress_es_sleeper;
SELECT es_grant('regress_es_sleeper', 'writer');
SET ROLE regress_es_sleeper;
SELECT count(*) FROM es_schedules;
SELECT conditions_try($$SELECT es_cancel('00000000-0000-0000-0000-00000000e001')$$);
RESET ROLE;
SELECT es_cancel('00000000-0000-0000-0000-00000000e001'), es_cancel('00000000-0000-0000-0000-00000000e001'),
	   es_cancel(NULL);
SELECT count(es_cancel(id)) FROM es_schedules;
BEGIN;
SELECT es_schedule('REMIND', '3', '{}', '2099-01-01') IS NOT NULL;
ROLLBACK;
SELECT count(*) FROM es_schedules;

DROP OWNED BY regress_es_sleeper;
DROP ROLE regress_es_sleeper;
SELECT es_drop_command('REMIND');
DROP FUNCTION conditions_try, conditions_types;
SET es.allow_destructive = on;
DELETE FROM es.tag WHERE "position" > :start;
DELETE FROM es.event WHERE "position" > :start;
DELETE FROM es.command_log WHERE command LIKE 'es_append%';
