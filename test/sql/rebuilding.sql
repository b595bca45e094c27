--
-- Rebuilding read models: what hangs on a table goes on working.
--
SET client_min_messages = warning;
CREATE SCHEMA rb;
SET search_path = rb, public;

-- Wait until the latest rebuild of a projection is done, or has stopped.
CREATE FUNCTION rebuilt(p text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	r record;
BEGIN
	FOR i IN 1 .. 1800 LOOP
		SELECT * INTO r FROM es_stat_rebuild s WHERE s.projection = p ORDER BY rebuild DESC LIMIT 1;
		EXIT WHEN r.finished_at IS NOT NULL OR r.last_error IS NOT NULL;
		PERFORM pg_sleep(0.1);
	END LOOP;
	RETURN r.phase || coalesce(': ' || r.last_error, '');
END $$;
CREATE VIEW last_rebuild AS
	SELECT DISTINCT ON (projection) projection, stream, phase, percent, rows_inserted AS ins,
		   rows_updated AS upd, rows_deleted AS del
	  FROM es_stat_rebuild ORDER BY projection, rebuild DESC;

CREATE TABLE region (name text PRIMARY KEY);
INSERT INTO region VALUES ('north'), ('south');
CREATE TABLE account (
	id int GENERATED ALWAYS AS IDENTITY,
	stream text PRIMARY KEY,
	region text NOT NULL DEFAULT 'north' REFERENCES region,		-- a foreign key out
	amount numeric NOT NULL CHECK (amount > -1000000),
	doubled numeric GENERATED ALWAYS AS (amount * 2) STORED,
	rank text UNIQUE);
CREATE INDEX ON account (amount);
CREATE TABLE movement (amount int, note json);					-- no key at all
CREATE TABLE remark (stream text REFERENCES account, t text);	-- a foreign key in
CREATE VIEW rich AS SELECT stream, amount FROM account WHERE amount > 100;
CREATE ROLE regress_es_reader;
GRANT USAGE ON SCHEMA rb TO regress_es_reader;
GRANT SELECT ON account TO regress_es_reader;
ALTER TABLE account ENABLE ROW LEVEL SECURITY;
CREATE POLICY only_one ON account TO regress_es_reader USING (stream = 'rb-1');
SET client_min_messages = error;
CREATE PUBLICATION regress_es_pub FOR TABLE account;
SET client_min_messages = warning;
CREATE TABLE audit (op text, stream text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO audit VALUES (tg_op, coalesce(new.stream, old.stream));
	RETURN NULL;
END $$;
PREPARE total AS SELECT count(*), sum(amount) FROM account;

SELECT es_settled() AS start \gset
SELECT count(*) FROM generate_series(1, 1000) i,
	LATERAL es_append('rb-' || i % 20, 'T', jsonb_build_object('amount', i % 50, 'rank', i % 20));
SELECT es_create_projection('account', $$
	INSERT INTO account (stream, amount, rank)
	SELECT stream, sum((payload->>'amount')::numeric), max(payload->>'rank') FROM es_batch GROUP BY stream
	ON CONFLICT (stream) DO UPDATE
		SET amount = account.amount + excluded.amount, rank = excluded.rank;
	INSERT INTO movement SELECT (payload->>'amount')::int, payload::json FROM es_batch
	$$, categories => '{rb}', partitions => 2, batch_size => 100, start_after => :start,
	tables => '{account,movement}');
SELECT es_wait('account', es_settled(), '60 s');
INSERT INTO remark SELECT stream, 'good' FROM account;
EXECUTE total;
CREATE TABLE account_before AS TABLE account;
SELECT 'account'::regclass::oid AS oid_before \gset
SELECT relfilenode AS storage_before FROM pg_class WHERE oid = 'account'::regclass \gset

-- Damage of every kind ...
UPDATE account SET amount = 0 WHERE stream = 'rb-1';
UPDATE account SET rank = NULL WHERE rank = '3';
UPDATE account SET rank = '3' WHERE rank = '4';
DELETE FROM remark WHERE stream = 'rb-4';
DELETE FROM account WHERE stream = 'rb-4';
INSERT INTO account (stream, amount) VALUES ('nobody', 1);
DELETE FROM movement WHERE amount = 7;
INSERT INTO movement SELECT 8, '{}' FROM generate_series(1, 3);
CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON account
	FOR EACH ROW EXECUTE FUNCTION note();
-- ... is mended, and no more than that is written.
SELECT es_rebuild('account');
SELECT rebuilt('account');
SELECT * FROM last_rebuild WHERE projection = 'account';
SELECT op, count(*) FROM audit GROUP BY 1 ORDER BY 1;
EXECUTE total;
SELECT count(*) FROM account JOIN account_before b USING (stream, amount, doubled, rank, region);
-- Surrogate numbers stay as they are.
SELECT count(*) FROM account JOIN account_before b USING (stream, id) WHERE stream <> 'rb-4';
SELECT count(*), sum(amount) FROM movement;
SELECT 'account'::regclass::oid = :oid_before AS same_oid,
	   (SELECT relfilenode = :storage_before FROM pg_class WHERE oid = 'account'::regclass) AS same_storage;
SELECT count(*) FROM rich;
SET ROLE regress_es_reader;
SELECT stream FROM rb.account;
RESET ROLE;
SELECT pubname, tablename FROM pg_publication_tables WHERE pubname = 'regress_es_pub';
DELETE FROM account WHERE stream = 'rb-5';
SELECT nspname FROM pg_namespace WHERE nspname LIKE 'es\_rebuild%';
SELECT version FROM es_append('rb-1', 'T', '{"amount": 1000, "rank": 1}');
SELECT es_wait('account', es_settled(), '60 s');
EXECUTE total;
SELECT status, lag_events FROM es_projections WHERE name = 'account';

-- Nothing to mend, nothing written.
TRUNCATE audit;
SELECT es_rebuild('account');
SELECT rebuilt('account');
SELECT ins, upd, del, (SELECT count(*) FROM audit) FROM last_rebuild WHERE projection = 'account';

-- A row that others refer to, and that should not be there, stops the rebuild.
INSERT INTO account (stream, amount) VALUES ('ghost', 1);
INSERT INTO remark VALUES ('ghost', 'who is that?');
SELECT es_rebuild('account');
SELECT rebuilt('account');
EXECUTE total;
SELECT status FROM es_projections WHERE name = 'account';
SELECT es_cancel_rebuild('account');
SELECT es_cancel_rebuild('account');
DELETE FROM remark WHERE stream = 'ghost';
SELECT phase FROM last_rebuild WHERE projection = 'account';
SELECT nspname FROM pg_namespace WHERE nspname LIKE 'es\_rebuild%';
SELECT es_rebuild('account');
SELECT rebuilt('account');
EXECUTE total;

-- A new shape: the query changes, the rebuild brings everything into it.
ALTER TABLE account ADD COLUMN events int;
SELECT es_alter_projection('account', query => $$
	INSERT INTO account (stream, amount, events)
	SELECT stream, sum((payload->>'amount')::numeric), count(*) FROM es_batch GROUP BY stream
	ON CONFLICT (stream) DO UPDATE
		SET amount = account.amount + excluded.amount, events = account.events + excluded.events;
	INSERT INTO movement SELECT (payload->>'amount')::int, payload::json FROM es_batch
	$$);
SELECT es_rebuild('account');
SELECT rebuilt('account');
SELECT count(*), sum(amount), sum(events), count(rank) FROM account;

-- Synchronous, too; its appenders write the table that is merged into.
SELECT es_alter_projection('account', mode => 'sync');
UPDATE account SET amount = 7;
SELECT es_rebuild('account');
SELECT rebuilt('account');
SELECT version FROM es_append('rb-1', 'T', '{"amount": 1}');
EXECUTE total;
SELECT es_drop_projection('account');

-- One stream alone.
CREATE TABLE line (order_stream text, n int, what text, PRIMARY KEY (order_stream, n));
SELECT es_create_projection('line', $$
	INSERT INTO line SELECT stream, version, payload->>'what' FROM es_batch $$,
	categories => '{ord}', tables => '{line}', keys => '{order_stream}', start_after => es_settled());
SELECT count(*) FROM generate_series(1, 9) i, LATERAL es_append('ord-' || i % 3, 'T', jsonb_build_object('what', i));
SELECT es_wait('line', es_settled(), '60 s');
UPDATE line SET what = 'wrong';
DELETE FROM line WHERE n = 2;
INSERT INTO line VALUES ('ord-1', 99, 'too much');
SELECT es_rebuild('line', stream => 'ord-1');
SELECT rebuilt('line');
SELECT * FROM last_rebuild WHERE projection = 'line';
SELECT * FROM line ORDER BY 1, 2;
SELECT es_rebuild('line');
SELECT rebuilt('line');
SELECT count(*) FILTER (WHERE what = 'wrong'), count(*) FROM line;

-- The shadow has all indexes where the query may look for rows, and else those
-- that keep something unique.
CREATE TABLE ix (stream text PRIMARY KEY, n int, what text UNIQUE);
CREATE INDEX ix_n ON ix (n);
CREATE TABLE shadow_index (name text);
CREATE FUNCTION look() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
	TRUNCATE rb.shadow_index;
	INSERT INTO rb.shadow_index SELECT indexname FROM pg_indexes WHERE schemaname LIKE 'es\_rebuild\_%';
END $$;
CREATE EVENT TRIGGER regress_es_look ON ddl_command_end
	WHEN tag IN ('CREATE TABLE', 'DROP INDEX') EXECUTE FUNCTION look();
SELECT es_create_projection('ix', 'SELECT 1 FROM es_batch', categories => '{ix}', tables => '{ix}',
	start_after => es_settled());
CREATE FUNCTION ix_add(e es.event) RETURNS void LANGUAGE sql AS 'INSERT INTO ix VALUES (e.stream, 1)';
CREATE PROCEDURE shadow_indexes(q text) LANGUAGE plpgsql AS $$
BEGIN
	PERFORM es_alter_projection('ix', query => q);
	PERFORM es_rebuild('ix');
	COMMIT;
	RAISE WARNING '%: %', rebuilt('ix'), (SELECT string_agg(name, ' ' ORDER BY name) FROM shadow_index);
END $$;
\set SHOW_CONTEXT never
CALL shadow_indexes('INSERT INTO ix SELECT stream, count(*) FROM es_batch GROUP BY 1
	ON CONFLICT (stream) DO UPDATE SET n = ix.n + excluded.n');
CALL shadow_indexes('WITH e AS (SELECT * FROM es_batch) INSERT INTO ix SELECT upper(stream), version FROM e');
CALL shadow_indexes('INSERT INTO ix SELECT stream, 1 FROM es_batch; UPDATE ix SET n = 2 WHERE n = 1 AND EXISTS (SELECT FROM es_batch)');
CALL shadow_indexes('INSERT INTO ix SELECT stream, 1 FROM es_batch WHERE version NOT IN (SELECT n FROM ix)');
CALL shadow_indexes('WITH d AS (DELETE FROM ix WHERE n = 0 RETURNING 1) INSERT INTO ix SELECT stream, 1 FROM es_batch');
CALL shadow_indexes('MERGE INTO ix USING es_batch b ON n = b.version WHEN NOT MATCHED THEN INSERT VALUES (b.stream, 1)');
CALL shadow_indexes('SELECT ix_add(e) FROM es_batch e');
DROP EVENT TRIGGER regress_es_look;
SELECT es_drop_projection('ix');

-- Rows whose unique values were exchanged, and rows that referred to others.
CREATE TABLE box (n int PRIMARY KEY, holder text NOT NULL UNIQUE);
CREATE TABLE ware (id int PRIMARY KEY, box int NOT NULL REFERENCES box);
SELECT es_create_projection('box', $$
	INSERT INTO box SELECT version, payload->>'holder' FROM es_batch;
	INSERT INTO ware SELECT version, version FROM es_batch $$,
	categories => '{box}', tables => '{ware,box}', start_after => es_settled());
SELECT version FROM es_append_batch('box-1', '[{"type": "T", "payload": {"holder": "ann"}},
	{"type": "T", "payload": {"holder": "bob"}}, {"type": "T", "payload": {"holder": "cyd"}}]');
SELECT es_wait('box', es_settled(), '60 s');
DELETE FROM ware;
UPDATE box SET holder = 'x' WHERE n = 1;
UPDATE box SET holder = 'ann' WHERE n = 2;
UPDATE box SET holder = 'bob' WHERE n = 1;
SELECT es_rebuild('box');
SELECT rebuilt('box');
SELECT * FROM box JOIN ware ON box.n = ware.box ORDER BY 1;
DELETE FROM ware;
DELETE FROM box;
INSERT INTO box VALUES (7, 'dan');
INSERT INTO ware VALUES (1, 7), (2, 7), (4, 7);
SELECT es_rebuild('box');
SELECT rebuilt('box');
SELECT * FROM box JOIN ware ON box.n = ware.box ORDER BY 1;
SELECT es_drop_projection('box');

-- Poison events are found by the rebuild as by anything; what was discarded
-- stays out, and what failed and passes now goes in.
CREATE TABLE pm (stream text, version bigint, x int, PRIMARY KEY (stream, version));
SELECT es_create_projection('pm', $$
	INSERT INTO pm SELECT stream, version, (payload->>'x')::int FROM es_batch $$,
	categories => '{pm}', tables => '{pm}', on_error => 'skip', start_after => es_settled());
SELECT count(*) FROM generate_series(1, 60) i,
	LATERAL es_append('pm-' || i % 6, 'T',
		jsonb_build_object('x', CASE WHEN i IN (20, 33) THEN 'bad' ELSE i::text END));
SELECT es_wait('pm', es_settled(), '60 s');
SELECT es_discard('pm', position, 'nonsense') FROM es.dead_letter
 WHERE projection = 'pm' AND stream = 'pm-2' AND status = 'failed';
SELECT stream, version, status FROM es.dead_letter
 WHERE projection = 'pm' AND status <> 'parked' ORDER BY position;
DELETE FROM pm;
SELECT es_rebuild('pm');
SELECT rebuilt('pm');
SELECT stream, count(*) FROM pm GROUP BY 1 ORDER BY 1;
SELECT stream, version, status FROM es.dead_letter WHERE projection = 'pm' ORDER BY position;
SELECT es_alter_projection('pm', query => $$
	INSERT INTO pm SELECT stream, version, nullif(payload->>'x', 'bad')::int FROM es_batch $$);
SELECT es_rebuild('pm');
SELECT rebuilt('pm');
SELECT stream, version, status FROM es.dead_letter WHERE projection = 'pm' ORDER BY position;
SELECT stream, count(*) FROM pm GROUP BY 1 HAVING count(*) <> 10 ORDER BY 1;

-- What cannot be rebuilt.
SELECT es_rebuild('none');
SELECT es_rebuild('pm', stream => 'pm-1');
SELECT es_create_projection('nt', 'SELECT 1 FROM es_batch', start_after => es_settled());
SELECT es_rebuild('nt');
SELECT es_drop_projection('nt');
SELECT es_alter_projection('pm', query => 'INSERT INTO rb.pm SELECT stream, version, 1 FROM es_batch');
SELECT es_rebuild('pm');
CREATE FUNCTION hidden(e es.event) RETURNS void LANGUAGE sql SET search_path = rb AS $$
	INSERT INTO pm VALUES (e.stream, e.version, 1)
$$;
SELECT es_alter_projection('pm', query => 'SELECT hidden(e) FROM es_batch e');
DELETE FROM pm;
SELECT es_rebuild('pm');
SELECT rebuilt('pm');
SELECT count(*) FROM pm;
SELECT es_cancel_rebuild('pm');
SELECT es_alter_projection('pm', query => $$SELECT es_append('pmx-1', 'T') FROM es_batch$$);
SELECT es_rebuild('pm');
SELECT rebuilt('pm');
SELECT count(*) FROM es_stream('pmx-1');
-- Dropping the projection cancels its rebuild.
SELECT es_drop_projection('pm');
SELECT es_drop_projection('line');
SELECT nspname FROM pg_namespace WHERE nspname LIKE 'es\_rebuild%';

DROP PUBLICATION regress_es_pub;
DROP SCHEMA rb CASCADE;
DROP ROLE regress_es_reader;
