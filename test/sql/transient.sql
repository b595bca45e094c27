--
-- Errors of the circumstances are told from those of the events by their
-- SQLSTATE: the same batch is tried again, and no event is blamed.
--
SET client_min_messages = warning;
CREATE SCHEMA tr;
SET search_path = tr, public;
CREATE TABLE fault (sqlstate text);
CREATE TABLE seen (stream text, version bigint, PRIMARY KEY (stream, version));
-- Sequences keep what is rolled back: how many events the last attempt was about.
CREATE SEQUENCE tried;
CREATE FUNCTION run_into(events bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	PERFORM setval('tried', events);
	IF EXISTS (SELECT FROM fault) THEN
		RAISE 'made up' USING ERRCODE = (SELECT sqlstate FROM fault);
	END IF;
END $$;
SELECT es_create_projection('tr', $$
	SELECT run_into(count(*)) FROM es_batch;
	INSERT INTO seen SELECT stream, version FROM es_batch
	$$, categories => '{tr}', on_error => 'skip', start_after => es_settled());

-- Eight events under an error, then without it.
CREATE PROCEDURE under(state text) LANGUAGE plpgsql AS $$
DECLARE
	r record;
	letter bigint;
BEGIN
	INSERT INTO fault VALUES (state);
	COMMIT;
	PERFORM es_append_batch('tr-' || state, jsonb_agg('{"type": "T"}'::jsonb)) FROM generate_series(1, 8);
	COMMIT;
	FOR i IN 1 .. 9000 LOOP
		SELECT status, dead_letters, last_error_sqlstate INTO r FROM es_projections WHERE name = 'tr';
		EXIT WHEN r.status = 'stopped' OR r.dead_letters = 8;
		PERFORM pg_sleep(0.02);
	END LOOP;
	RAISE WARNING '% (%): % with %, % events tried last, % dead letters', state,
		CASE WHEN r.dead_letters > 0 THEN 'of the events' ELSE 'of the circumstances' END,
		CASE WHEN r.status = 'stopped' THEN 'stopped' ELSE 'went on' END,
		coalesce(r.last_error_sqlstate, 'no error'), (SELECT last_value FROM tried), r.dead_letters;
	TRUNCATE fault;
	COMMIT;
	PERFORM es_resume('tr');
	COMMIT;
	SELECT min("position") INTO letter FROM es.dead_letter WHERE projection = 'tr';
	IF letter IS NOT NULL THEN
		PERFORM es_retry('tr', letter);
		COMMIT;
	END IF;
	PERFORM es_wait('tr', es_settled(), '180 s');
	COMMIT;
END $$;
\set SHOW_CONTEXT never
-- Serialization failures and deadlocks (class 40), after a few attempts at once;
-- lack of resources (53), intervention (57), system errors (58), connections (08);
-- a lock that is not available, an object in use, a read-only server.
CALL under('40001');
CALL under('40P01');
CALL under('53100');
CALL under('53200');
CALL under('57014');
CALL under('58030');
CALL under('08006');
CALL under('55P03');
CALL under('55006');
CALL under('25006');
-- Everything else is the event's fault.
CALL under('22P02');
CALL under('23505');
CALL under('42883');
CALL under('P0001');
CALL under('XX000');
SELECT count(*), count(DISTINCT stream) FROM seen;

-- What passes needs nobody's help.
INSERT INTO fault VALUES ('53100');
SELECT version FROM es_append('tr-self', 'T');
DO $$
BEGIN
	FOR i IN 1 .. 9000 LOOP
		EXIT WHEN (SELECT status = 'stopped' FROM es_projections WHERE name = 'tr');
		PERFORM pg_sleep(0.02);
	END LOOP;
END $$;
SELECT status, last_error_sqlstate, retries > 0 AS tried FROM es_projections WHERE name = 'tr';
TRUNCATE fault;
DO $$
BEGIN
	FOR i IN 1 .. 9000 LOOP
		EXIT WHEN (SELECT status = 'caught up' FROM es_projections WHERE name = 'tr');
		PERFORM pg_sleep(0.02);
	END LOOP;
END $$;
SELECT status, last_error, retries FROM es_projections WHERE name = 'tr';
SELECT count(*) FROM seen WHERE stream = 'tr-self';

SELECT es_drop_projection('tr');
DROP SCHEMA tr CASCADE;
