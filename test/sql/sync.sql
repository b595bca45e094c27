--
-- Synchronous projections: applied in the statement that appends.
--
SET client_min_messages = warning;
CREATE SCHEMA sync_app;
SET search_path = sync_app, public;
CREATE TABLE totals (stream text PRIMARY KEY, amount int NOT NULL CHECK (amount >= 0));
SELECT es_settled() AS start \gset
SELECT position FROM es_append('sync-0', 'T', '{"amount": 1}') \gset

-- It begins with what is there.
SELECT es_create_projection('totals', $$
	INSERT INTO totals SELECT stream, sum((payload->>'amount')::int) FROM es_batch GROUP BY stream
	ON CONFLICT (stream) DO UPDATE SET amount = totals.amount + excluded.amount
	$$, categories => '{sync}', mode => 'sync', start_after => :start);
SELECT * FROM totals;

-- The read model is never behind, whoever appends, and needs no right to it.
CREATE ROLE regress_es_appender;
SELECT es_grant('regress_es_appender', 'writer');
SET ROLE regress_es_appender;
SET search_path = public;
SELECT version FROM es_append('sync-1', 'T', '{"amount": 10}');
SELECT version FROM es_append_batch('sync-1', '[{"type": "T", "payload": {"amount": 1}}, {"type": "T", "payload": {"amount": 2}}]');
SELECT version FROM es_append('other-1', 'T', '{"amount": "not for it"}');
SELECT * FROM sync_app.totals;
RESET ROLE;
SELECT * FROM sync_app.totals ORDER BY 1;

-- Its error rejects the event, and names it.
SET ROLE regress_es_appender;
SELECT es_append('sync-1', 'T', '{"amount": -100}');
SELECT es_append('sync-1', 'T', '{"amount": "x"}');
SELECT version FROM es_append('sync-1', 'T', '{"amount": 1}');
-- With a savepoint the transaction goes on.
BEGIN;
SELECT version FROM es_append('sync-2', 'T', '{"amount": 2}');
SAVEPOINT s;
SELECT es_append('sync-2', 'T', '{"amount": -3}');
ROLLBACK TO s;
SELECT version FROM es_append('sync-2', 'T', '{"amount": 3}');
COMMIT;
BEGIN;
SELECT version FROM es_append('sync-3', 'T', '{"amount": 3}');
ROLLBACK;
RESET ROLE;
SELECT * FROM sync_app.totals ORDER BY 1;
SELECT name, mode, status, lag_events FROM es_projections WHERE name = 'totals';
SELECT es_wait('totals', es_settled(), '60 s');

-- Many events in one statement, and in a transaction with a snapshot of its own.
SELECT count(*) FROM generate_series(1, 500) i, LATERAL es_append('sync-' || i % 7, 'T', '{"amount": 1}');
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM generate_series(1, 7) i, LATERAL es_append('sync-' || i % 7, 'T', '{"amount": 1}');
COMMIT;
SELECT sum(amount) FROM sync_app.totals;

-- Also where the appender's search_path is that of the projection, which is then
-- left as it is; and what the query makes of it is undone.
SET search_path = sync_app, public;
SELECT es_create_projection('wanders', $$
	SELECT set_config('search_path', 'public', false) FROM es_batch
	$$, categories => '{sync}', mode => 'sync', start_after => es_settled());
BEGIN;
SELECT version > 0 FROM es_append('sync-1', 'T', '{"amount": 1}');
SHOW search_path;
CREATE TEMP TABLE totals (stream text PRIMARY KEY, amount int NOT NULL);
SELECT version > 0 FROM es_append('sync-1', 'T', '{"amount": 1}');
SHOW search_path;
SELECT * FROM pg_temp.totals;
SELECT sum(amount) FROM sync_app.totals;
ROLLBACK;
SELECT es_drop_projection('wanders');
SET search_path = public;

-- A temporary table of the appender does not take the place of the owner's.
SET ROLE regress_es_appender;
CREATE TEMP TABLE totals (stream text PRIMARY KEY, amount int NOT NULL);
SELECT version > 0 FROM es_append('sync-1', 'T', '{"amount": 1}');
SELECT * FROM totals;
RESET ROLE;
SELECT sum(amount) FROM sync_app.totals;
DROP TABLE pg_temp.totals;

-- What the query does with settings, roles and deferred triggers is undone or
-- refused: it runs with the owner's rights in somebody else's session.
SET search_path = sync_app, public;
CREATE TABLE who (session_user_ text, current_user_ text, setting text);
SELECT es_create_projection('who', $$
	INSERT INTO who SELECT session_user, current_user, set_config('es.metadata', '{"evil": 1}', false) FROM es_batch
	$$, categories => '{who}', mode => 'sync', start_after => es_settled());
SET SESSION AUTHORIZATION regress_es_appender;
SELECT version FROM public.es_append('who-1', 'T');
SHOW es.metadata;
SHOW search_path;
SELECT current_user;
RESET SESSION AUTHORIZATION;
SELECT session_user_, current_user_ <> 'regress_es_appender' AS as_owner, setting FROM who;
CREATE FUNCTION become() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	SET ROLE regress_es_appender;
END $$;
SELECT es_alter_projection('who', query => 'SELECT become() FROM es_batch');
SELECT es_append('who-1', 'T');
CREATE TABLE deferred (x int UNIQUE DEFERRABLE INITIALLY DEFERRED);
SELECT es_alter_projection('who', query => 'INSERT INTO deferred SELECT 1 FROM es_batch');
SELECT version FROM es_append('who-1', 'T');
SELECT es_append('who-1', 'T');
SELECT es_drop_projection('who');

-- A projection that appends, in the same transaction, to what another one reads.
CREATE TABLE echoes (stream text, n int);
SELECT es_create_projection('saga', $$
	SELECT es_append('echo-' || split_part(stream, '-', 2), 'ECHO', payload) FROM es_batch
	$$, categories => '{ping}', mode => 'sync', start_after => es_settled());
SELECT es_create_projection('echoes', $$
	INSERT INTO echoes SELECT stream, (payload->>'n')::int FROM es_batch
	$$, categories => '{echo}', mode => 'sync', start_after => es_settled());
SELECT count(*) FROM es_append_batch('ping-1',
	(SELECT jsonb_agg(jsonb_build_object('type', 'PING', 'payload', jsonb_build_object('n', i))) FROM generate_series(1, 5) i));
SELECT * FROM echoes ORDER BY n;
-- One that answers itself without end is an error, not a crash.
SELECT es_create_projection('endless', $$
	SELECT es_append('endless-1', 'AGAIN') FROM es_batch
	$$, categories => '{endless}', mode => 'sync', start_after => es_settled());
\set VERBOSITY sqlstate
SELECT es_append('endless-1', 'GO');
\set VERBOSITY default
SELECT es_drop_projection(p) FROM unnest('{saga,echoes,endless}'::text[]) p;

-- Switching, without losing or repeating an event.
SELECT es_pause('totals');
SELECT es_alter_projection('totals', mode => 'async');
SELECT sum(amount) AS before FROM totals \gset
SELECT count(*) FROM generate_series(1, 100) i, LATERAL es_append('sync-' || i % 7, 'T', '{"amount": 1}');
SELECT es_alter_projection('totals', mode => 'sync');
SELECT sum(amount) - :before FROM totals;
SELECT count(*) FROM generate_series(1, 100) i, LATERAL es_append('sync-' || i % 7, 'T', '{"amount": 1}');
SELECT sum(amount) - :before FROM totals;
BEGIN;
SELECT version > 0 FROM es_append('sync-1', 'T', '{"amount": 1}');
SELECT es_alter_projection('totals', mode => 'async');
SELECT version > 0 FROM es_append('sync-1', 'T', '{"amount": 1}');
COMMIT;
SELECT es_wait('totals', es_settled(), '60 s');
SELECT sum(amount) - :before FROM totals;
BEGIN;
SELECT version > 0 FROM es_append('sync-1', 'T', '{"amount": 1}');
SELECT es_alter_projection('totals', mode => 'sync');
ROLLBACK;
SELECT es_pause('totals');
SELECT version > 0 FROM es_append('sync-1', 'T', '{"amount": 1}');
SELECT es_alter_projection('totals', mode => 'sync');
SELECT sum(amount) - :before FROM totals;

-- One whose partitions stand at different positions, as where one had stopped.
CREATE TABLE halves (stream text, n int);
SELECT es_create_projection('halves', $$
	INSERT INTO halves SELECT stream, (payload->>'n')::int FROM es_batch
	$$, categories => '{half}', partitions => 2, start_after => es_settled());
SELECT es_pause('halves');
SELECT 'half-' || i AS stream FROM generate_series(1, 100) i
 WHERE es.stream_partition('half-' || i, 2) = 1 LIMIT 1 \gset
SELECT count(es_append(:'stream', 'T', jsonb_build_object('n', i))) FROM generate_series(1, 3) i;
UPDATE es.checkpoint SET position = es_settled() WHERE projection = 'halves' AND partition = 0;
SELECT es_alter_projection('halves', mode => 'sync');
SELECT sum(n) FROM halves;
SELECT es_drop_projection('halves');

-- Bad input.
SELECT es_alter_projection('totals', mode => 'later');
SELECT es_alter_projection('totals', on_error => 'skip');
SELECT es_create_projection('s', 'SELECT 1 FROM es_batch', mode => 'sync', on_error => 'skip');
SELECT es_alter_projection('none', mode => 'sync');
SELECT es_alter_projection('totals', query => 'COMMIT');
SELECT es_alter_projection('totals', query => 'INSERT INTO nowhere SELECT 1 FROM es_batch');
SELECT es_alter_projection('totals', batch_size => -1);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT es_create_projection('s', 'SELECT 1 FROM es_batch', mode => 'sync');
ROLLBACK;

SELECT es_drop_projection('totals');
DROP OWNED BY regress_es_appender;
DROP ROLE regress_es_appender;
SET client_min_messages = warning;
DROP SCHEMA sync_app CASCADE;
