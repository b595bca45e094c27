--
-- Indexes that an administrator adds to es.event are kept like its own ones,
-- and a table that somebody altered is left alone.
--

-- Whether an index finds exactly the events that a sequential scan finds.
CREATE FUNCTION pg_temp.finds(condition text, OUT index_scan boolean,
							  OUT by_index bigint, OUT same boolean)
LANGUAGE plpgsql AS $$
DECLARE
	query text := format('SELECT count(*), coalesce(sum("position"), 0) FROM es.event WHERE %s', condition);
	line text;
	positions numeric;
	by_scan bigint;
	scan_positions numeric;
BEGIN
	SET LOCAL enable_seqscan = off;
	index_scan := false;
	FOR line IN EXECUTE 'EXPLAIN ' || query LOOP
		index_scan := index_scan OR line ~ '(Index|Bitmap Index) .*indexes_';
	END LOOP;
	EXECUTE query INTO by_index, positions;
	SET LOCAL enable_seqscan = on;
	SET LOCAL enable_indexscan = off;
	SET LOCAL enable_bitmapscan = off;
	SET LOCAL enable_indexonlyscan = off;
	EXECUTE query INTO by_scan, scan_positions;
	same := by_index = by_scan AND positions = scan_positions;
END
$$;

SELECT count(es_append('indexes-0', 'BEFORE', jsonb_build_object('n', n)))
  FROM generate_series(1, 10) n;

CREATE INDEX indexes_expression ON es.event (((payload->>'n')::integer)) WHERE category = 'indexes';
CREATE INDEX indexes_partial ON es.event (version) WHERE type = 'RARE';
CREATE INDEX indexes_gin ON es.event USING gin (payload jsonb_path_ops);
CREATE INDEX indexes_brin ON es.event USING brin ("position") WITH (pages_per_range = 1);
CREATE INDEX indexes_gist ON es.event USING gist (int8range("position", "position", '[]'));
CREATE INDEX indexes_hash ON es.event USING hash (type);
CREATE UNIQUE INDEX indexes_unique ON es.event ((payload->>'email')) WHERE type = 'SIGNED_UP';

-- One by one, and as a batch that takes the path for many rows.
SELECT count(es_append('indexes-1', CASE WHEN n % 50 = 0 THEN 'RARE' ELSE 'COMMON' END,
					   jsonb_build_object('n', n)))
  FROM generate_series(1, 300) n;
SELECT last_position - first_position + 1 AS events, version
  FROM es_append_batch('indexes-2',
		(SELECT jsonb_agg(jsonb_build_object('type', CASE WHEN n % 50 = 0 THEN 'RARE' ELSE 'COMMON' END,
											 'payload', jsonb_build_object('n', n)))
		   FROM generate_series(1, 600) n));

SELECT * FROM pg_temp.finds($$category = 'indexes' AND (payload->>'n')::integer = 7$$);
SELECT * FROM pg_temp.finds($$type = 'RARE' AND version > 0$$);
SELECT * FROM pg_temp.finds($$payload @> '{"n": 300}'$$);
SELECT * FROM pg_temp.finds($$int8range("position", "position", '[]') && int8range(0, 1000000000) AND category = 'indexes'$$);
SELECT * FROM pg_temp.finds($$type = 'BEFORE'$$);

-- A unique index of the administrator's is enforced, on its rows alone.
SELECT version FROM es_append('indexes-3', 'SIGNED_UP', '{"email": "ann@example.org"}');
SELECT version FROM es_append('indexes-4', 'SIGNED_UP', '{"email": "ann@example.org"}');
SELECT version FROM es_append('indexes-4', 'INVITED', '{"email": "ann@example.org"}');
SELECT version FROM es_append('indexes-4', 'INVITED', '{"email": "ann@example.org"}');

-- An access method may keep something for the length of a statement, with
-- pointers into the open index; that must not outlive a rebuilt cache entry.
ALTER INDEX es.indexes_gin SET (fastupdate = off);
ALTER INDEX es.indexes_gist SET (fillfactor = 70);
ALTER INDEX es.indexes_brin SET (autosummarize = on);
SELECT count(*) > 0 AS cache_used_otherwise FROM information_schema.columns;
SELECT count(es_append('indexes-5', 'AGAIN', jsonb_build_object('n', n)))
  FROM generate_series(1, 300) n;
ALTER INDEX es.indexes_gin SET (fastupdate = on);
ALTER INDEX es.indexes_gist SET (fillfactor = 90);
REINDEX INDEX es.indexes_brin;
SELECT count(*) > 0 AS cache_used_otherwise FROM information_schema.columns;
SELECT count(es_append('indexes-6', 'AGAIN', jsonb_build_object('n', n)))
  FROM generate_series(1, 300) n;
SELECT * FROM pg_temp.finds($$payload @> '{"n": 300}'$$);
SELECT * FROM pg_temp.finds($$int8range("position", "position", '[]') && int8range(0, 1000000000) AND category = 'indexes'$$);

-- Indexes that are gone are not missed, and new ones not either.
DROP INDEX es.indexes_gin, es.indexes_gist, es.indexes_hash, es.indexes_unique;
CREATE INDEX indexes_late ON es.event (recorded_at, version);
REINDEX TABLE es.event;
SELECT version FROM es_append('indexes-7', 'LATE');
REINDEX TABLE CONCURRENTLY es.event;
SELECT version FROM es_append('indexes-7', 'LATE');
SELECT * FROM pg_temp.finds($$recorded_at >= (SELECT min(e.recorded_at) FROM es.event e WHERE e.category = 'indexes') AND version = 2$$);

-- An index built in the transaction that has appended.
BEGIN;
SELECT version FROM es_append('indexes-8', 'OWN', '{"n": 1}');
CREATE INDEX indexes_own ON es.event ((payload->'n')) WHERE type = 'OWN';
SELECT version FROM es_append('indexes-8', 'OWN', '{"n": 2}');
SELECT * FROM pg_temp.finds($$type = 'OWN' AND payload->'n' = '2'$$);
COMMIT;

-- An expression that fails lets nothing through, and does no lasting harm.
CREATE INDEX indexes_failing ON es.event ((1 / (payload->>'divisor')::integer)) WHERE type = 'DIVIDED';
SELECT version FROM es_append('indexes-9', 'DIVIDED', '{"divisor": 0}');
SELECT version FROM es_append('indexes-9', 'DIVIDED', '{"divisor": 1}');
SELECT version FROM es_append('indexes-9', 'DIVIDED', '{"divisor": 0}');
SELECT version FROM es_append('indexes-9', 'DIVIDED', '{"divisor": 2}');

-- A column more, and nothing is written any more; a column that was added and
-- dropped again does no harm.
SET es.allow_destructive = on;
BEGIN;
ALTER TABLE es.tag ADD COLUMN note text;
SELECT version FROM es_append('indexes-10', 'ALTERED', tags => '{a}');
ROLLBACK;
BEGIN;
ALTER TABLE es.tag ADD COLUMN note text NOT NULL DEFAULT 'none';
ALTER TABLE es.tag DROP COLUMN note;
SELECT version FROM es_append('indexes-10', 'ALTERED', '{"n": 1}', tags => '{a}');
SELECT count(*) FROM es.tag t JOIN es.event e USING ("position") WHERE e.stream = 'indexes-10';
ROLLBACK;
SELECT version FROM es_append('indexes-10', 'NOT_ALTERED');

DROP INDEX es.indexes_expression, es.indexes_partial, es.indexes_brin,
	es.indexes_late, es.indexes_own, es.indexes_failing;
DELETE FROM es.event WHERE category = 'indexes';
