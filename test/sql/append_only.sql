-- The log is append-only: every attack, tried by a superuser and by a role that
-- owns all there is to own of the log, and the answer each one got.
SET client_min_messages = error;
CREATE DATABASE regress_es_append_only;
\c regress_es_append_only
SET client_min_messages = error;
CREATE EXTENSION es;
CREATE ROLE regress_es_owner;
GRANT CREATE, USAGE ON SCHEMA public TO regress_es_owner;
GRANT ALL ON es_batch TO regress_es_owner;

-- attempt(who, attack): try it in a subtransaction, with the answer in a table.
CREATE TABLE attempts (
	n serial, attack text, who text, answer text, PRIMARY KEY (n));
CREATE FUNCTION attempt(who text, attack text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
	answer text := 'DONE';
	hint text := '';
BEGIN
	BEGIN
		PERFORM set_config('role', CASE who WHEN 'owner' THEN 'regress_es_owner' ELSE 'none' END, true);
		EXECUTE attack;
		-- Deferred harm must show too.
		SET CONSTRAINTS ALL IMMEDIATE;
		RAISE EXCEPTION 'undo' USING ERRCODE = 'UNDOX';
	EXCEPTION WHEN OTHERS THEN
		GET STACKED DIAGNOSTICS hint = PG_EXCEPTION_HINT;
		IF SQLSTATE <> 'UNDOX' THEN
			answer := SQLSTATE || ' ' || SQLERRM ||
				CASE WHEN hint LIKE '%es.allow\_destructive%' THEN ' (hint: es.allow_destructive)' ELSE '' END;
		END IF;
	END;
	PERFORM set_config('role', 'none', true);
	INSERT INTO attempts (attack, who, answer) VALUES (attack, who, answer);
END
$$;
-- The answers side by side; "*" stands for the reason and the hint of es.
CREATE VIEW answers AS
	SELECT regexp_replace(attack, '\s+', ' ', 'g') AS attack,
		   max(short) FILTER (WHERE who = 'superuser') AS superuser,
		   max(short) FILTER (WHERE who = 'owner') AS owner
	  FROM (SELECT *, replace(answer, ': the log is append-only (hint: es.allow_destructive)', ' *') AS short
			  FROM attempts) a
	 GROUP BY attack ORDER BY min(n);
-- try(attack): by the superuser and by the owner.
CREATE PROCEDURE try(VARIADIC attacks text[]) LANGUAGE plpgsql AS $$
DECLARE
	a text;
	who text;
BEGIN
	FOREACH a IN ARRAY attacks LOOP
		FOREACH who IN ARRAY ARRAY['superuser', 'owner'] LOOP
			PERFORM attempt(who, a);
			COMMIT;
		END LOOP;
	END LOOP;
END
$$;

-- A role that is no superuser gets all that belongs to the log.
ALTER SCHEMA es OWNER TO regress_es_owner;
ALTER TABLE es.event OWNER TO regress_es_owner;
ALTER TABLE es.tag OWNER TO regress_es_owner;
ALTER TABLE es.identity OWNER TO regress_es_owner;
ALTER TABLE es.checkpoint OWNER TO regress_es_owner;
ALTER SEQUENCE es.event_position OWNER TO regress_es_owner;
ALTER FUNCTION es.refuse_change() OWNER TO regress_es_owner;

-- As long as the log is empty: what would take the fences down later.
CREATE TABLE would_be_child (LIKE es.event);
ALTER TABLE would_be_child OWNER TO regress_es_owner;
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CALL try(
	'ALTER TABLE es.event DISABLE TRIGGER ALL',
	'ALTER TABLE es.event DISABLE TRIGGER append_only_row',
	'ALTER TABLE es.event ENABLE REPLICA TRIGGER append_only',
	'ALTER TRIGGER append_only ON es.event RENAME TO gone',
	'ALTER TRIGGER append_only ON es.event DEPENDS ON EXTENSION plpgsql',
	'DROP TRIGGER append_only ON es.event',
	'DROP TRIGGER append_only_row ON es.tag',
	'CREATE OR REPLACE TRIGGER append_only BEFORE DELETE ON es.event EXECUTE FUNCTION nothing()',
	'CREATE TRIGGER mine AFTER INSERT OR UPDATE ON es.checkpoint EXECUTE FUNCTION nothing()',
	'CREATE CONSTRAINT TRIGGER mine AFTER UPDATE ON es.checkpoint DEFERRABLE INITIALLY DEFERRED
	 FOR EACH ROW EXECUTE FUNCTION nothing()',
	'CREATE OR REPLACE FUNCTION es.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $a$ BEGIN RETURN NEW; END $a$',
	'DROP FUNCTION es.refuse_change() CASCADE',
	'CREATE RULE "_RETURN" AS ON SELECT TO es.event DO INSTEAD SELECT * FROM would_be_child',
	'CREATE RULE forge AS ON INSERT TO es.event DO INSTEAD NOTHING',
	'CREATE RULE forge AS ON UPDATE TO es.checkpoint DO INSTEAD NOTHING',
	'CREATE TABLE child () INHERITS (es.event)',
	'ALTER TABLE would_be_child INHERIT es.event',
	'ALTER TABLE es.event INHERIT would_be_child',
	'ALTER TABLE es.event DROP CONSTRAINT event_stream_version_key',
	'ALTER TABLE es.event RENAME TO event_old',
	'ALTER TABLE es.event RENAME COLUMN payload TO was_payload',
	'ALTER SCHEMA es RENAME TO was_es',
	'ALTER TABLE es.event SET SCHEMA public',
	'ALTER EXTENSION es DROP FUNCTION es.refuse_change()',
	'ALTER EXTENSION es DROP TABLE es.event');
\pset format unaligned
TABLE answers;
\pset format aligned
TRUNCATE attempts RESTART IDENTITY;

-- The same and more of them on a log with events in it.
SELECT es_append('account-1', 'OPENED', '{"owner": "ann"}', tags => ARRAY['bank']) IS NOT NULL AS appended;
SELECT es_append('account-1', 'DEPOSITED', '{"amount": 10}') IS NOT NULL AS appended;
CREATE TABLE before AS SELECT md5(string_agg(e::text, '|' ORDER BY position)) AS events FROM es.event e;
CREATE TABLE triggers_before AS SELECT tgrelid, tgname, tgenabled, tgfoid, tgtype
  FROM pg_trigger WHERE tgrelid IN ('es.event'::regclass, 'es.tag'::regclass, 'es.identity'::regclass);
CREATE TABLE referring (p bigint);
ALTER TABLE referring OWNER TO regress_es_owner;

-- rows
CALL try(
	'UPDATE es.event SET payload = ''{}''',
	'UPDATE es.event SET payload = ''{}'' WHERE false',
	'DELETE FROM es.event',
	'DELETE FROM ONLY es.event WHERE version = 2',
	'TRUNCATE es.event',
	'TRUNCATE es.event, es.tag CASCADE',
	'TRUNCATE es.tag',
	'UPDATE es.tag SET tag = ''x''',
	'DELETE FROM es.tag',
	'INSERT INTO es.event VALUES (1000, 3, now(), ''account-1'', ''account'', ''FORGED'', ''{}'', NULL)',
	'INSERT INTO es.event SELECT * FROM es.event ON CONFLICT (position) DO UPDATE SET payload = ''{}''',
	'INSERT INTO es.tag VALUES (''forged'', 1)',
	'COPY es.event FROM ''/dev/null''',
	'COPY es.tag FROM PROGRAM ''true''',
	'MERGE INTO es.event e USING (VALUES (1)) v (p) ON e.position = v.p WHEN MATCHED THEN DELETE',
	'MERGE INTO es.event e USING (VALUES (1)) v (p) ON e.position = v.p WHEN MATCHED THEN UPDATE SET payload = ''{}''',
	'WITH d AS (DELETE FROM es.event RETURNING *) SELECT count(*) FROM d',
	'SET LOCAL session_replication_role = replica; DELETE FROM es.event',
	'SET LOCAL session_replication_role = replica; UPDATE es.event SET type = ''X''',
	'SET LOCAL session_replication_role = replica; TRUNCATE es.event',
	'SET LOCAL session_replication_role = replica; INSERT INTO es.event VALUES (1000, 3, now(), ''account-1'', ''account'', ''FORGED'', ''{}'', NULL)',
	'DELETE FROM es.identity; INSERT INTO es.event VALUES (1000, 3, now(), ''account-1'', ''account'', ''FORGED'', ''{}'', NULL)',
	'TRUNCATE es.identity',
	'UPDATE es.identity SET system_identifier = ''0''',
	'UPDATE es_batch SET payload = ''{}''',
	'DELETE FROM es_batch',
	'DO $a$ BEGIN DELETE FROM es.event; EXCEPTION WHEN OTHERS THEN RAISE; END $a$');
-- shape
CALL try(
	'ALTER TABLE es.event ALTER COLUMN payload TYPE jsonb USING ''{}''',
	'ALTER TABLE es.event ALTER payload TYPE text USING ''forged''',
	'ALTER TABLE IF EXISTS ONLY es.event ALTER version TYPE numeric',
	'ALTER TABLE es.event DROP COLUMN metadata',
	'ALTER TABLE es.event ADD COLUMN extra text DEFAULT ''x''',
	'ALTER TABLE es.event ALTER payload DROP NOT NULL',
	'ALTER TABLE es.event ADD CONSTRAINT c CHECK (version < 2) NOT VALID',
	'ALTER TABLE es.event DISABLE TRIGGER ALL',
	'ALTER TABLE es.event DISABLE TRIGGER USER',
	'ALTER TABLE es.tag DISABLE TRIGGER append_only',
	'ALTER TABLE es.identity DISABLE TRIGGER ALL',
	'ALTER TABLE es.event SET ACCESS METHOD heap',
	'ALTER TABLE es.event SET UNLOGGED',
	'ALTER TABLE es.event OF es.new_event',
	'ALTER TABLE es.event INHERIT would_be_child',
	'ALTER TABLE would_be_child INHERIT es.event',
	'CREATE TABLE part PARTITION OF es.event DEFAULT',
	'CREATE TABLE child () INHERITS (es.event)',
	'CREATE SCHEMA regress_s CREATE TABLE child () INHERITS (es.event)',
	'ALTER TABLE es.event RENAME TO event_old',
	'ALTER TABLE es.event RENAME CONSTRAINT event_pkey TO k',
	'ALTER TYPE es.event RENAME ATTRIBUTE payload TO p',
	'ALTER INDEX es.event_stream_version_key RENAME TO k',
	'DROP INDEX es.event_category_position_idx',
	'ALTER SEQUENCE es.event_position RESTART',
	'ALTER SEQUENCE es.event_position INCREMENT 1',
	'ALTER SEQUENCE es.event_position OWNED BY would_be_child.position',
	'CREATE RULE forge AS ON INSERT TO es.event DO INSTEAD NOTHING',
	'CREATE OR REPLACE FUNCTION es.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $a$ BEGIN RETURN NEW; END $a$');
-- the whole
CALL try(
	'DROP TABLE es.event',
	'DROP TABLE es.event CASCADE',
	'DROP TABLE would_be_child, es.tag CASCADE',
	'DROP SEQUENCE es.event_position CASCADE',
	'DROP SCHEMA es CASCADE',
	'DROP EXTENSION es',
	'DROP EXTENSION es CASCADE',
	'DROP OWNED BY regress_es_owner',
	'DROP OWNED BY regress_es_owner CASCADE',
	'ALTER EXTENSION es DROP TABLE es.event',
	'ALTER EXTENSION es SET SCHEMA es',
	'ALTER SCHEMA es RENAME TO was_es');
\pset format unaligned
TABLE answers;
\pset format aligned
SELECT attempt('owner', 'SET LOCAL es.allow_destructive = on');
SELECT answer FROM attempts ORDER BY n DESC LIMIT 1;
TRUNCATE attempts;
-- what an administrator needs stays possible
CALL try(
	'ALTER TABLE es.event SET (autovacuum_vacuum_insert_scale_factor = 0.1)',
	'ALTER TABLE es.event ALTER payload SET STATISTICS 0',
	'ALTER TABLE es.event ALTER payload SET COMPRESSION pglz',
	'ALTER TABLE es.event SET TABLESPACE pg_default',
	'ALTER TABLE es.event ENABLE ROW LEVEL SECURITY',
	'CREATE POLICY mine ON es.event USING (true)',
	'CREATE INDEX ON es.event (type)',
	'CREATE INDEX ON es.event ((payload->>''owner'')) WHERE type = ''OPENED''',
	'ALTER TABLE es.event REPLICA IDENTITY FULL',
	'CLUSTER es.event USING event_pkey',
	'REINDEX TABLE es.event',
	'CREATE TABLE refers (p bigint REFERENCES es.event)',
	'ALTER TABLE referring ADD FOREIGN KEY (p) REFERENCES es.event (position)',
	'CREATE TABLE copied AS SELECT * FROM es.event');
\pset format unaligned
TABLE answers;
\pset format aligned

-- Nothing happened.
SELECT (SELECT events FROM before) = md5(string_agg(e::text, '|' ORDER BY position)) AS events_are_untouched,
	   count(*) FROM es.event e;
SELECT count(*) AS changed_triggers FROM (
	(SELECT tgrelid, tgname, tgenabled, tgfoid, tgtype FROM pg_trigger
	  WHERE tgrelid IN ('es.event'::regclass, 'es.tag'::regclass, 'es.identity'::regclass)
	 EXCEPT SELECT * FROM triggers_before)
	UNION ALL
	(SELECT * FROM triggers_before EXCEPT
	 SELECT tgrelid, tgname, tgenabled, tgfoid, tgtype FROM pg_trigger)) x;

-- A superuser who says so can.
BEGIN;
SET LOCAL es.allow_destructive = on;
UPDATE es.event SET metadata = '{}';
DELETE FROM es.event;
TRUNCATE es.tag;
DROP EXTENSION es CASCADE;
ROLLBACK;

-- A sequence that was set back is set right when more positions are needed, or at
-- the next start of the counter: no position is used twice.
SELECT setval('es.event_position', 1, false) AS set_back;
SELECT count(es_append('account-1', 'DEPOSITED')) AS appended FROM generate_series(1, 9000);
SELECT last_value >= (SELECT max("position") FROM es.event) AS ahead_again FROM es.event_position;

-- An empty log may go.
BEGIN;
SET LOCAL es.allow_destructive = on;
DELETE FROM es.event;
SET LOCAL es.allow_destructive = off;
DROP EXTENSION es;
ROLLBACK;

\c contrib_regression
DROP DATABASE regress_es_append_only;
DROP ROLE regress_es_owner;
