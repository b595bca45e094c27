--
-- Projections, asynchronous ones: from es_create_projection() to
-- es_drop_projection().
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

-- What a projection is known to be, without what differs from run to run.
CREATE VIEW projections_shown AS
	SELECT name, owner = current_user AS mine, mode, status, lag_events, lag_seconds,
		   events_applied, batches, last_error, last_error_sqlstate, retries, categories, types
	  FROM es_projections WHERE name LIKE 'projections%' ORDER BY name;
CREATE FUNCTION pg_temp.caught_up(projection text) RETURNS boolean LANGUAGE sql
	AS $$SELECT es_wait(projection, (SELECT max("position") FROM es.event), '60 s')$$;

--
-- A read model, and reading one's own writes
--

CREATE TABLE projections_total (stream text PRIMARY KEY, total integer, events integer);
SELECT es_settled() AS start \gset
SELECT es_create_projection('projections_total', $$
	INSERT INTO projections_total
	SELECT stream, sum((payload->>'n')::integer), count(*) FROM es_batch GROUP BY stream
	ON CONFLICT (stream) DO UPDATE SET
		total = projections_total.total + excluded.total,
		events = projections_total.events + excluded.events$$, start_after => :start);
SELECT "position" FROM es_append('projecting-1', 'ADDED', '{"n": 1}') \gset
SELECT es_wait('projections_total', :position, '60 s');
SELECT * FROM projections_total ORDER BY stream;
SELECT last_position AS "position" FROM es_append_batch('projecting-2',
	'[{"type": "ADDED", "payload": {"n": 10}}, {"type": "TAKEN", "payload": {"n": -3}}]') \gset
SELECT es_wait('projections_total', :position, '60 s');
SELECT * FROM projections_total ORDER BY stream;
SELECT status, lag_events, lag_seconds, events_applied, batches BETWEEN 1 AND 3 AS batched,
	   last_error, retries FROM projections_shown;

--
-- es_wait
--

-- What it has applied already does not wait, whatever the timeout.
SELECT es_wait('projections_total', :position, '0 s'), es_wait('projections_total', 0, '-1 s'),
	   es_wait('projections_total', -1), es_wait(projection => 'projections_total', "position" => :position);
-- In vain.
SELECT es_wait('projections_total', :position + 1000000, '10 ms');
SELECT es_wait('projections_total', 9223372036854775807, '0 s');
SELECT es_wait('projections_total', :position + 1000000, '-1 day');
SELECT es_wait(NULL, 1, '1 s') IS NULL, es_wait('projections_total', NULL, '1 s') IS NULL,
	   es_wait('projections_total', 1, NULL) IS NULL;
SELECT pg_temp.try($$SELECT es_wait('projections_missing', 1)$$);
SELECT pg_temp.try($$SELECT es_wait('projections_missing', 1, '1000000 years')$$);
SELECT pg_temp.try($$SELECT es_wait('projections_total', 1, '1000000 years')$$);
-- Not for what this transaction has not committed, and not where the snapshot
-- would not see the rows.
BEGIN;
SELECT "position" FROM es_append('projecting-1', 'ADDED', '{"n": 1}') \gset
SELECT es_wait('projections_total', :position - 1, '60 s');
SELECT pg_temp.try(format('SELECT es_wait(%L, %s)', 'projections_total', :position));
ROLLBACK;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT pg_temp.try($$SELECT es_wait('projections_total', 1)$$);
ROLLBACK;
-- A wait that is cancelled leaves no trace.
SET statement_timeout = '50ms';
SELECT es_wait('projections_total', :position + 1000000, '1 hour');
RESET statement_timeout;
SELECT es_wait('projections_total', :position - 1, '60 s');

--
-- Filters, several statements, search_path, start_after, handlers
--

CREATE TABLE projections_seen (who text, n integer, type text, category text);
CREATE FUNCTION pg_temp.seen(who text) RETURNS text LANGUAGE sql
	AS $$SELECT string_agg(n::text, ' ' ORDER BY n) FROM projections_seen s WHERE s.who = seen.who$$;
SELECT count(es_create_projection('projections_' || name, format(
	'INSERT INTO projections_seen SELECT %L, (payload->>''n'')::integer, type, category FROM es_batch', name),
	categories, types, start_after => es_settled())::text)
  FROM (VALUES ('all', NULL::text[], NULL::text[]),
			   ('category', '{projecting}', NULL),
			   ('categories', '{projecting,projected,projecting}', NULL),
			   ('type', NULL, '{ADDED}'),
			   ('types', NULL, '{ADDED,TAKEN}'),
			   ('both', '{projected}', '{ADDED,OTHER}'),
			   ('nothing', '{no such}', NULL),
			   ('no_category', '{}', NULL),
			   ('no_type', NULL, '{}')) AS f (name, categories, types);
SELECT count(es_append(stream, type, jsonb_build_object('n', n)))
  FROM (VALUES (1, 'projecting-3', 'ADDED'), (2, 'projected-3', 'ADDED'), (3, 'projecting-4', 'TAKEN'),
			   (4, 'projected-4', 'TAKEN'), (5, 'projected-4', 'OTHER'), (6, 'projections-4', 'ADDED')) AS e (n, stream, type);
SELECT bool_and(pg_temp.caught_up(name)) FROM projections_shown WHERE name <> 'projections_total';
SELECT name, pg_temp.seen(substr(name, 13)), events_applied
  FROM projections_shown WHERE name <> 'projections_total';
-- A category filter is no prefix of names.
SELECT DISTINCT category FROM projections_seen WHERE who = 'category';
SELECT count(es_drop_projection(name)::text) FROM projections_shown WHERE name <> 'projections_total';
SELECT count(*) > 0 AS models_stay FROM projections_seen;
TRUNCATE projections_seen;

-- Several statements are applied in one transaction, each to the same batch; the
-- names are looked up by the search_path of the creation.
CREATE SCHEMA projections_schema;
CREATE TABLE projections_schema.inside (n integer);
CREATE TABLE projections_counter (statements integer, events bigint);
INSERT INTO projections_counter VALUES (0, 0);
SET search_path = projections_schema, public;
SELECT es_create_projection('projections_many', $$
	INSERT INTO inside SELECT (payload->>'n')::integer FROM es_batch;
	UPDATE projections_counter SET statements = statements + 1;
	WITH c AS (SELECT count(*) AS n FROM es_batch)
	UPDATE projections_counter SET statements = statements + 1, events = events + c.n FROM c;
	DELETE FROM inside WHERE n < 0;
	-- what comes last may be a comment $$, start_after => es_settled());
RESET search_path;
SELECT last_position AS "position" FROM es_append_batch('projecting-5',
	'[{"type": "A", "payload": {"n": 5}}, {"type": "B", "payload": {"n": -5}}]') \gset
SELECT es_wait('projections_many', :position, '60 s');
SELECT * FROM projections_schema.inside;
SELECT statements % 2 = 0 AS all_or_none, events FROM projections_counter;
SELECT es_drop_projection('projections_many');

-- start_after leaves out what came before.
SELECT "position" FROM es_append('projecting-6', 'A', '{"n": 60}') \gset
SELECT "position" AS next FROM es_append('projecting-6', 'A', '{"n": 61}') \gset
SELECT es_create_projection('projections_late', $$
	INSERT INTO projections_seen SELECT 'late', (payload->>'n')::integer FROM es_batch$$,
	categories => '{projecting}', start_after => :position);
SELECT es_wait('projections_late', :next, '60 s'), pg_temp.seen('late');
SELECT es_drop_projection('projections_late');
-- The whole log, in small batches.
SELECT es_create_projection('projections_early', $$
	INSERT INTO projections_seen SELECT 'early', (payload->>'n')::integer FROM es_batch$$,
	categories => '{projecting}', batch_size => 1);
SELECT pg_temp.caught_up('projections_early');
SELECT count(*) = (SELECT count(*) FROM es_read(0, NULL, 'projecting')) AS all_of_them
  FROM projections_seen WHERE who = 'early';
SELECT batches = events_applied AS one_by_one FROM projections_shown WHERE name = 'projections_early';
SELECT es_drop_projection('projections_early');

-- A handler gets one event at a time, and a projection may submit commands.
CREATE FUNCTION projections_handler(e es.event) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO projections_seen VALUES ('handler', (e.payload->>'n')::integer, e.type);
	IF e.type = 'ASKED' THEN
		PERFORM es_submit('projections_answer', split_part(e.stream, '-', 2), e.payload);
	END IF;
END
$$;
SELECT es_create_command('projections_answer', 'answering', 'ANSWERED', creates => true);
SELECT es_create_projection('projections_saga',
	'SELECT projections_handler(e) FROM es_batch e ORDER BY "position"', start_after => es_settled());
SELECT "position" FROM es_append('projecting-7', 'ASKED', '{"n": 7}') \gset
SELECT es_wait('projections_saga', :position, '60 s');
SELECT stream, version, type, payload FROM es_stream('answering-7');
SELECT pg_temp.caught_up('projections_saga');
SELECT n, type FROM projections_seen WHERE who = 'handler' ORDER BY type;
SELECT es_drop_projection('projections_saga'), es_drop_command('projections_answer');

--
-- Pausing and resuming
--

SELECT es_pause('projections_total');
SELECT status FROM projections_shown;
SELECT "position" FROM es_append('projecting-8', 'ADDED', '{"n": 8}') \gset
SELECT es_wait('projections_total', :position, '50 ms');
SELECT status, lag_events > 0 AS behind, lag_seconds >= 0 AS known FROM projections_shown;
SELECT es_pause('projections_total');
SELECT es_resume('projections_total');
SELECT es_wait('projections_total', :position, '60 s');
SELECT es_resume('projections_total');
SELECT status FROM projections_shown;
BEGIN;
SELECT es_pause('projections_total');
SELECT status FROM projections_shown;
ROLLBACK;
SELECT "position" FROM es_append('projecting-8', 'ADDED', '{"n": 8}') \gset
SELECT es_wait('projections_total', :position, '60 s');
SELECT * FROM projections_total WHERE stream = 'projecting-8';

--
-- A projection that fails stops, and says where and why; the others go on
--

CREATE TABLE projections_checked (n integer CHECK (n > 0));
SELECT es_create_projection('projections_failing', $$
	INSERT INTO projections_checked SELECT (payload->>'n')::integer FROM es_batch$$,
	categories => '{projecting}', start_after => es_settled());
SELECT first_position AS "position" FROM es_append_batch('projecting-9',
	'[{"type": "A", "payload": {"n": 5}}, {"type": "A", "payload": {"n": 0}}, {"type": "A", "payload": {"n": 4}}]') \gset
SELECT es_wait('projections_total', :position + 2, '60 s');
DO $$
BEGIN
	FOR i IN 1..6000 LOOP
		EXIT WHEN (SELECT status = 'stopped' FROM es_projections WHERE name = 'projections_failing');
		PERFORM pg_sleep(0.01);
	END LOOP;
END
$$;
-- What lies before the event that fails is applied, what lies behind is not.
SELECT status, "position" - :position AS "position", last_error_position - :position AS failing,
	   last_error_sqlstate, last_error, retries > 0 AS tried, last_error_at IS NOT NULL AS at
  FROM es_projections WHERE name = 'projections_failing';
SELECT * FROM projections_checked;
-- Whoever waits for more is told at once.
SELECT es_wait('projections_failing', :position, '60 s');
SELECT replace(pg_temp.try(format('SELECT es_wait(%L, %s, %L)', 'projections_failing', :position + 2, '1 hour')),
			   (:position + 1)::text, '(position)');
-- Mended and resumed.
ALTER TABLE projections_checked DROP CONSTRAINT projections_checked_n_check;
SELECT es_resume('projections_failing');
SELECT es_wait('projections_failing', :position + 2, '60 s');
SELECT * FROM projections_checked;
SELECT status, last_error_position, last_error_sqlstate, last_error, retries, last_error_at
  FROM es_projections WHERE name = 'projections_failing';
SELECT es_drop_projection('projections_failing');

--
-- What the query of one projection sets does not reach the next one
--

CREATE ROLE regress_es_nobody;
SELECT es_create_projection('projections_setting', $$
	SELECT set_config('role', 'regress_es_nobody', false), set_config('statement_timeout', '1234', false),
		   set_config('search_path', 'pg_catalog', false), set_config('es.metadata', '{"from": "setting"}', false)
	  FROM es_batch$$, categories => '{projecting}', start_after => es_settled());
SELECT es_create_projection('projections_setting_seen', $$
	INSERT INTO projections_seen
	SELECT 'setting', (payload->>'n')::integer, (current_user = 'regress_es_nobody')::text,
		   current_setting('statement_timeout') || current_setting('es.metadata') FROM es_batch$$,
	categories => '{projecting}', start_after => es_settled());
SELECT "position" FROM es_append('projecting-10', 'A', '{"n": 1}') \gset
SELECT es_wait('projections_setting', :position, '60 s'), es_wait('projections_setting_seen', :position, '60 s');
SELECT "position" FROM es_append('projecting-10', 'A', '{"n": 2}') \gset
SELECT es_wait('projections_setting', :position, '60 s'), es_wait('projections_setting_seen', :position, '60 s');
SELECT * FROM projections_seen WHERE who = 'setting' ORDER BY n;
SELECT es_drop_projection('projections_setting'), es_drop_projection('projections_setting_seen');
DROP ROLE regress_es_nobody;

--
-- Definitions that are refused, at creation
--

SELECT pg_temp.try($$SELECT es_create_projection('projections_total', 'SELECT FROM es_batch')$$);
SELECT pg_temp.try($$SELECT es_create_projection(NULL, 'SELECT FROM es_batch')$$);
SELECT pg_temp.try($$SELECT es_create_projection('', 'SELECT FROM es_batch')$$);
SELECT pg_temp.try($$SELECT es_create_projection(repeat('p', 513), 'SELECT FROM es_batch')$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', NULL)$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', '')$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', ' -- nothing')$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', ';;')$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELEC FROM es_batch')$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELECT FROM es_batch; SELEC')$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'INSERT INTO projections_missing SELECT FROM es_batch')$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELECT no_such_function(stream) FROM es_batch')$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELECT no_such_column FROM es_batch')$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELECT * FROM es_batch WHERE version = $1')$$);
-- The transaction is the worker's.
SELECT pg_temp.try(format('SELECT es_create_projection(%L, %L)', 'projections_bad', statement))
  FROM unnest(ARRAY['COMMIT', 'SELECT FROM es_batch; ROLLBACK', 'CREATE TABLE t ()', 'TRUNCATE projections_seen',
	'SET search_path = x', 'NOTIFY es', 'LISTEN es', 'DO $x$ BEGIN END $x$', 'CALL x()', 'COPY projections_seen TO STDOUT',
	'SELECT * INTO projections_made FROM es_batch', 'SELECT 1 AS n INTO projections_made UNION SELECT 2',
	'EXPLAIN SELECT FROM es_batch', 'LOCK projections_seen', 'DECLARE c CURSOR FOR SELECT 1']) statement;
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELECT FROM es_batch', categories => ARRAY['a', NULL])$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELECT FROM es_batch', categories => ARRAY[''])$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELECT FROM es_batch', types => ARRAY[repeat('t', 513)])$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELECT FROM es_batch', batch_size => 0)$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELECT FROM es_batch', batch_size => -1)$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELECT FROM es_batch', start_after => -1)$$);
SELECT pg_temp.try($$SELECT es_create_projection('projections_bad', 'SELECT FROM es_batch', start_after => NULL)$$);
SELECT count(*) FROM es_projections WHERE name = 'projections_bad';

-- Its owner is the role that creates it, which must be able to log in, and has
-- its tables by its own rights.
CREATE ROLE regress_es_nologin;
CREATE ROLE regress_es_projector LOGIN;
CREATE ROLE regress_es_other LOGIN;
SELECT es_grant(r::regrole, 'projector') FROM unnest('{regress_es_nologin,regress_es_projector,regress_es_other}'::text[]) r;
SET ROLE regress_es_nologin;
SELECT pg_temp.try($$SELECT es_create_projection('projections_nologin', 'SELECT FROM es_batch')$$);
SET ROLE regress_es_projector;
SELECT es_create_projection('projections_owned', $$
	INSERT INTO projections_seen SELECT current_user, 1 FROM es_batch$$,
	categories => '{projecting}', start_after => es_settled());
SET ROLE regress_es_other;
SELECT pg_temp.try($$SELECT es_pause('projections_owned')$$);
SELECT pg_temp.try($$SELECT es_resume('projections_owned')$$);
SELECT pg_temp.try($$SELECT es_drop_projection('projections_owned')$$);
RESET ROLE;
SELECT "position" FROM es_append('projecting-11', 'A') \gset
DO $$
BEGIN
	FOR i IN 1..6000 LOOP
		EXIT WHEN (SELECT status = 'stopped' FROM es_projections WHERE name = 'projections_owned');
		PERFORM pg_sleep(0.01);
	END LOOP;
END
$$;
SELECT owner, status, last_error_sqlstate, last_error FROM es_projections WHERE name = 'projections_owned';
GRANT INSERT ON projections_seen TO regress_es_projector;
SET ROLE regress_es_projector;
SELECT es_resume('projections_owned');
SELECT es_wait('projections_owned', :position, '60 s');
RESET ROLE;
SELECT who FROM projections_seen WHERE who LIKE 'regress%';
SELECT es_drop_projection('projections_owned');
DROP OWNED BY regress_es_nologin, regress_es_projector, regress_es_other;
DROP ROLE regress_es_nologin, regress_es_projector, regress_es_other;

-- Positions that were rolled back have no event, and a query is not run over none.
CREATE TABLE projections_sum (n bigint, total bigint);
INSERT INTO projections_sum VALUES (0, 0);
SELECT es_create_projection('projections_sum', $$
	UPDATE projections_sum t SET n = t.n + b.n, total = t.total + b.total
	  FROM (SELECT count(*), sum(version) FROM es_batch) b (n, total)$$, start_after => es_settled());
BEGIN;
SELECT version FROM es_append('projecting-none', 'A');
ROLLBACK;
SELECT es_wait('projections_sum', es_settled(), '60 s');
TABLE projections_sum;
SELECT events_applied, batches FROM es_projections WHERE name = 'projections_sum';
SELECT version FROM es_append('projecting-none', 'A');
SELECT es_wait('projections_sum', es_settled(), '60 s');
TABLE projections_sum;
SELECT es_drop_projection('projections_sum');
DROP TABLE projections_sum;

SELECT pg_temp.try($$SELECT es_drop_projection('projections_missing')$$);
SELECT pg_temp.try($$SELECT es_pause('projections_missing')$$);
SELECT pg_temp.try($$SELECT es_resume('projections_missing')$$);
SELECT pg_temp.try($$SELECT es_drop_projection(NULL)$$);
SELECT pg_temp.try($$SELECT es_pause('')$$);
SELECT es_drop_projection('projections_total');
SELECT count(*) FROM projections_shown;

DROP VIEW projections_shown;
DROP TABLE projections_total, projections_seen, projections_counter, projections_checked;
DROP FUNCTION projections_handler;
DROP SCHEMA projections_schema CASCADE;
SET es.allow_destructive = on;
DELETE FROM es.event WHERE category IN ('projecting', 'projected', 'projections', 'answering');
