--
-- What an operator sees.
--
SET client_min_messages = warning;
CREATE SCHEMA mon;
SET search_path = mon, public;
CREATE TABLE m (stream text, version bigint, n int CHECK (n < 100));

-- Wait until a query is true.
CREATE PROCEDURE until(query text) LANGUAGE plpgsql AS $$
DECLARE
	done bool;
BEGIN
	FOR i IN 1 .. 1800 LOOP
		PERFORM pg_stat_clear_snapshot();
		EXECUTE query INTO done;
		EXIT WHEN done;
		PERFORM pg_sleep(0.1);
	END LOOP;
	RAISE NOTICE '%', done;
END $$;
SET client_min_messages = notice;

SELECT es_create_projection('mon', $$
	INSERT INTO m SELECT stream, version, (payload->>'n')::int FROM es_batch
	$$, categories => '{mon}', tables => '{m}', start_after => es_settled());
SELECT count(*) FROM generate_series(1, 10) i, LATERAL es_append('mon-' || i, 'T', '{"n": 1}');
SELECT es_wait('mon', es_settled(), '60 s');
SELECT name, status, lag_events, lag_seconds, events_applied, batches > 0 AS batches, applied_at <= now() + '1 s' AS applied,
	   last_error, retries, dead_letters
  FROM es_projections WHERE name = 'mon';
SELECT * FROM es_health();
SELECT projection, status, behind, lag, seconds, applied, remark FROM es_top WHERE projection = 'mon';
CALL until($$SELECT bool_or(activity = 'es projector: caught up' AND memory > 0 AND state = 'idle'
	AND database = current_database()) FROM es_stat_workers WHERE kind = 'projector'$$);
SELECT count(*) FROM es_stat_workers WHERE kind = 'scheduler' AND activity LIKE 'es scheduler: settled at position %';
SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'es projector' AND backend_type = 'es projector';

-- What a projector does is said in the words of who defined it.
SELECT es_create_projection('busy', $$
	SELECT pg_advisory_xact_lock(7403) FROM es_batch LIMIT 1 $$, categories => '{busy}', start_after => es_settled());
SELECT pg_advisory_lock(7403);
SELECT last_position AS at FROM es_append_batch('busy-1', jsonb_build_array('{"type": "T"}'::jsonb, '{"type": "T"}'::jsonb)) \gset
CALL until($$SELECT bool_or(application_name = 'es projector: busy' AND query LIKE 'es projector: busy, % events behind')
	FROM pg_stat_activity$$);
SELECT pg_advisory_unlock(7403);
SELECT es_wait('busy', :at, '60 s');
SELECT es_drop_projection('busy');

-- Stopped.
SELECT version FROM es_append('mon-1', 'T', '{"n": 100}');
\set VERBOSITY sqlstate
SELECT es_wait('mon', es_settled(), '60 s');
\set VERBOSITY default
SELECT status, last_error_sqlstate, retries > 0 AS retried FROM es_projections WHERE name = 'mon';
SELECT ok, regexp_replace(problems::text, 'position \d+', 'position N') FROM es_health();
SELECT sqlstate, error, context FROM es_projection_errors WHERE projection = 'mon';
SELECT projection, status, behind, lag, remark FROM es_top WHERE projection = 'mon';
CALL until($$SELECT bool_or(activity = 'es projector: 1 stopped, see es_projections')
	FROM es_stat_workers WHERE kind = 'projector'$$);

-- Paused, and dead letters.
SELECT es_pause('mon');
SELECT status FROM es_projections WHERE name = 'mon';
SELECT es_alter_projection('mon', on_error => 'skip');
SELECT es_resume('mon');
SELECT version FROM es_append('mon-2', 'T', '{"n": 2}');
SELECT es_wait('mon', es_settled(), '60 s');
SELECT status, dead_letters FROM es_projections WHERE name = 'mon';
SELECT problems FROM es_health();
SELECT projection, status, remark FROM es_top WHERE projection = 'mon';

-- A rebuild that cannot go on.
CREATE TABLE child (stream text, version bigint);
ALTER TABLE m ADD PRIMARY KEY (stream, version);
INSERT INTO m VALUES ('other', 1, 1);
ALTER TABLE child ADD FOREIGN KEY (stream, version) REFERENCES m;
INSERT INTO child VALUES ('other', 1);
SELECT es_rebuild('mon');
CALL until($$SELECT NOT ok AND problems::text LIKE '%The rebuild of projection \\"mon\\" has stopped: update or delete%' FROM es_health()$$);
SELECT status FROM es_projections WHERE name = 'mon';
SELECT phase, percent IS NOT NULL AS percent, retries > 0 AS retried FROM es_stat_rebuild WHERE projection = 'mon';
SELECT es_cancel_rebuild('mon');

-- The history of errors is bounded.
INSERT INTO es.projection_error (projection, rebuild, partition, at, position, sqlstate, error)
	SELECT 'mon', 0, 0, now() - i * '1 minute'::interval, i, 'XX000', 'old' FROM generate_series(1, 300) i;
SELECT version FROM es_append('mon-3', 'T', '{"n": 300}');
SELECT version AS v FROM es_append('mon-4', 'T', '{"n": 3}');
SELECT es_wait('mon', es_settled(), '60 s');
SELECT count(*), min(error) LIKE 'new row%' AS newest_kept
  FROM es_projection_errors WHERE projection = 'mon';

-- A synchronous projection is never behind, and nothing of it is counted.
SELECT es_discard('mon', position, 'test') FROM es.dead_letter WHERE projection = 'mon';
SELECT es_alter_projection('mon', on_error => 'stop', mode => 'sync');
SELECT mode, status, lag_events, lag_seconds, events_applied, batches FROM es_projections WHERE name = 'mon';
SELECT * FROM es_health();

-- For a role that only looks.
CREATE ROLE regress_es_watcher;
SELECT es_grant('regress_es_watcher', 'reader');
SET ROLE regress_es_watcher;
SELECT ok FROM public.es_health();
SELECT projection, status FROM public.es_top WHERE projection = 'mon';
SELECT count(*) > 0 FROM public.es_stat_workers;
SELECT count(*) FROM public.es_stat_rebuild WHERE projection = 'mon';
RESET ROLE;
DROP OWNED BY regress_es_watcher;
DROP ROLE regress_es_watcher;

SELECT es_drop_projection('mon');
SET client_min_messages = warning;
DROP SCHEMA mon CASCADE;
