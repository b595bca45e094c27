-- Watches: the interface, and what is refused.
\set VERBOSITY terse
CREATE TABLE fwatch (id integer, part text, "Mixed ""case" boolean, amount numeric, PRIMARY KEY (id, part));
CREATE VIEW fwatch_view AS SELECT * FROM fwatch;
CREATE TEMP TABLE fwatch_temp (id integer);

SELECT es_watch('fwatch', NULL);
SELECT es_watch(NULL, ARRAY['id']);
SELECT es_watch('fwatch', ARRAY[]::text[]);
SELECT es_watch('fwatch', ARRAY['id', 'nothing']);
SELECT es_watch('fwatch', ARRAY['id', NULL]);
SELECT es_watch('fwatch', ARRAY['id', 'id']);
SELECT es_watch('fwatch', ARRAY['ctid']);
SELECT es_watch('fwatch', ARRAY['id'], '');
SELECT es_watch('fwatch', ARRAY['id'], 'es');
SELECT es_watch('fwatch', ARRAY['id'], repeat('x', 64));
SELECT es_watch('fwatch_view', ARRAY['id']);
SELECT es_watch('fwatch_temp', ARRAY['id']);
SELECT es_watch('es.event', ARRAY['position']);
SELECT es_watch('fwatch', ARRAY['id', 'part', 'Mixed "case']);
SELECT es_watch('fwatch', ARRAY['id']);
SELECT * FROM es_watches WHERE read_model = 'fwatch'::regclass;

-- Keys
SELECT es_watch_key('fwatch', '{"id": 1, "part": "a", "Mixed \"case": true}') ~ '^es_session_\d+_\d+$' AS channel;
SELECT es_watch_key('fwatch', '{"id": 2, "part": null, "Mixed \"case": null}')
	 = es_watch_key('fwatch', '{"id": 2, "part": null, "Mixed \"case": null}') AS same;
SELECT sessions FROM es_watches WHERE read_model = 'fwatch'::regclass;
SELECT key FROM es.watched_key WHERE relation = 'fwatch'::regclass ORDER BY key;
SELECT es_watch_key('fwatch', '{"id": 1, "part": "a"}');
SELECT es_watch_key('fwatch', '{"id": 1, "part": "a", "other": true}');
SELECT es_watch_key('fwatch', '{"id": "1", "part": "a", "Mixed \"case": true}');
SELECT es_watch_key('fwatch', '{"id": 1, "part": 1, "Mixed \"case": true}');
SELECT es_watch_key('fwatch', '{"id": 1, "part": "a", "Mixed \"case": "true"}');
SELECT es_watch_key('fwatch', '[]');
SELECT es_watch_key('fwatch', '1');
SELECT es_watch_key('fwatch', NULL);
SELECT es_watch_key(NULL, '{}');
SELECT es_watch_key('fwatch', jsonb_build_object('id', 1, 'part', repeat('x', 3000), 'Mixed "case', true));
SELECT es_watch_key('fwatch_temp', '{"id": 1}');
SELECT es_unwatch_key('fwatch', '{"id": 1, "part": "a", "Mixed \"case": true}');
SELECT count(*) FROM es.watched_key WHERE relation = 'fwatch'::regclass;

-- The trigger function serves es_watch() alone.
SELECT es.watch_changed();
CREATE TRIGGER wrong BEFORE INSERT ON fwatch FOR EACH ROW EXECUTE FUNCTION es.watch_changed('a', 'id');
INSERT INTO fwatch VALUES (1, 'a');
DROP TRIGGER wrong ON fwatch;

-- Every kind of statement on every kind of table
INSERT INTO fwatch VALUES (1, 'a', true, 1), (2, 'b', NULL, 2) ON CONFLICT (id, part) DO UPDATE SET amount = excluded.amount;
MERGE INTO fwatch f USING (VALUES (1, 'a'), (3, 'c')) v (id, part) ON f.id = v.id
	WHEN MATCHED THEN UPDATE SET amount = 3 WHEN NOT MATCHED THEN INSERT VALUES (v.id, v.part, NULL, 4);
COPY fwatch (id, part) FROM stdin;
4	d
\.
DELETE FROM fwatch WHERE id = 4;
TRUNCATE fwatch;
CREATE TABLE fwatch_parts (id integer, k integer) PARTITION BY LIST (k);
CREATE TABLE fwatch_part1 PARTITION OF fwatch_parts FOR VALUES IN (1);
CREATE TABLE fwatch_part2 PARTITION OF fwatch_parts FOR VALUES IN (2);
SELECT es_watch('fwatch_parts', ARRAY['id']);
INSERT INTO fwatch_parts SELECT i, 1 + i % 2 FROM generate_series(1, 4) i;
UPDATE fwatch_parts SET k = 3 - k;
DELETE FROM fwatch_parts;

-- Only an owner watches; who can read may watch keys.
CREATE ROLE fwatch_other;
GRANT USAGE ON SCHEMA es TO fwatch_other;
GRANT EXECUTE ON FUNCTION es_watch, es_unwatch, es_watch_key, es.rebuilt TO fwatch_other;
GRANT INSERT ON fwatch TO fwatch_other;
SET ROLE fwatch_other;
SELECT es_unwatch('fwatch');
SELECT es_watch('fwatch_parts', ARRAY['id']);
SELECT es.rebuilt('fwatch');
SELECT es_watch_key('fwatch', '{"id": 1, "part": "a", "Mixed \"case": true}');
-- The trigger needs no right of who changes the table.
INSERT INTO fwatch VALUES (9, 'z');
RESET ROLE;
SELECT es.rebuilt('fwatch');

SELECT es_unwatch('fwatch');
SELECT es_unwatch('fwatch');
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'fwatch'::regclass;
SELECT count(*) FROM es.watched_key WHERE relation = 'fwatch'::regclass;
SELECT es_watch_key('fwatch', '{"id": 1, "part": "a", "Mixed \"case": true}');
DROP TABLE fwatch_parts;
SELECT count(*) FROM es_watches WHERE read_model::text LIKE 'fwatch%';
DROP VIEW fwatch_view;
DROP TABLE fwatch, fwatch_temp;
DROP OWNED BY fwatch_other;
DROP ROLE fwatch_other;
