--
-- es_append_batch(): several events in one call, all or none.
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

\df es_append_batch

SELECT last_position - first_position AS span, version
  FROM es_append_batch('batch-1', '[{"type": "A"}]');
SELECT last_position - first_position AS span, version
  FROM es_append_batch('batch-1', '[
	{"type": "B", "payload": {"n": 1}},
	{"type": "C", "payload": {"n": 2}, "metadata": {"user": "ann"}, "tags": ["x", "y"]},
	{"tags": [], "type": "D", "metadata": null},
	{"type": "E", "tags": null, "payload": {}}
  ]');
SELECT e.version, type, payload, metadata,
	   array_agg(tag ORDER BY tag) FILTER (WHERE tag IS NOT NULL)
  FROM es_stream('batch-1') e LEFT JOIN es.tag USING ("position")
 GROUP BY 1, 2, 3, 4 ORDER BY 1;

-- Consecutive positions and versions, also of many events at once.
SELECT last_position - first_position AS span, version
  FROM es_append_batch('batch-2',
		(SELECT jsonb_agg(jsonb_build_object('type', 'MANY',
				'payload', jsonb_build_object('n', n)) ORDER BY n)
		   FROM generate_series(1, 1000) n));
SELECT count(*), bool_and((payload->>'n')::bigint = version) AS in_order,
	   max("position") - min("position") AS span, max(version) FROM es_stream('batch-2');

-- Expected versions.
SELECT version FROM es_append_batch('batch-3', '[{"type": "A"}, {"type": "B"}]', 0);
SELECT version FROM es_append_batch('batch-3', '[{"type": "A"}, {"type": "B"}]', expected_version => 2);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-3', '[{"type": "A"}]', 2)$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-3', '[{"type": "A"}]', -1)$$);

-- The session's metadata go with every event.
SET es.metadata = '{"user": "bob"}';
SELECT version FROM es_append_batch('batch-4',
	'[{"type": "A"}, {"type": "B", "metadata": {"user": "ann"}}, {"type": "C", "metadata": {"more": 1}}]');
RESET es.metadata;
SELECT version, metadata FROM es_stream('batch-4');

--
-- Bad input: what is no event is named, and nothing is appended
--

SELECT pg_temp.try($$SELECT version FROM es_append_batch(NULL, '[{"type": "A"}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('', '[{"type": "A"}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('-x', '[{"type": "A"}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', NULL)$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '{"type": "A"}')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '7')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', 'null')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, 7]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, [{"type": "B"}]]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": null}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": 7}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": ""}]')$$);
SELECT pg_temp.try(format('SELECT version FROM es_append_batch(%L, %L)', 'batch-5',
	jsonb_build_array('{"type": "A"}'::jsonb, jsonb_build_object('type', repeat('T', 513)))));
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "payload": null}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "payload": [1]}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "payload": "x"}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "metadata": 1}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "tags": "x"}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "tags": {"x": 1}}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "tags": [1]}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "tags": [null]}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "tags": [["x"]]}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "tags": [""]}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "palyoad": {}}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "Type": "C"}]')$$);
SELECT pg_temp.try($$SELECT version FROM es_append_batch('batch-5', '[{"type": "A"}, {"type": "B", "payload": {"a": 1}}')$$);
SET es.max_payload_size = 100;
SELECT pg_temp.try(format('SELECT version FROM es_append_batch(%L, %L)', 'batch-5',
	jsonb_build_array('{"type": "A"}'::jsonb, jsonb_build_object('type', 'B', 'payload',
		jsonb_build_object('a', repeat('x', 100))))));
RESET es.max_payload_size;
SELECT count(*) FROM es_stream('batch-5');

SET es.allow_destructive = on;
DELETE FROM es.tag WHERE "position" IN (SELECT "position" FROM es.event WHERE category = 'batch');
DELETE FROM es.event WHERE category = 'batch';
