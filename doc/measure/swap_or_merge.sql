--
-- What the end of a rebuild costs: merging the difference, as es_rebuild() does
-- it, beside putting the shadow in the place of the table.
--
--	test/cluster -o fsync=on psql -X -f doc/measure/swap_or_merge.sql
--
-- The swap is done by hand: the least that it takes, under the lock that it
-- takes, is to see that what refers to the table still finds its rows.
--
\set rows 200000
\set QUIET on
\o /dev/null
SET client_min_messages = warning;

CREATE TABLE balance (account text PRIMARY KEY, amount int NOT NULL, movements bigint NOT NULL);
CREATE INDEX balance_amount ON balance (amount);
CREATE TABLE remark (account text NOT NULL REFERENCES balance);
CREATE TABLE result (
	way text, differ numeric, written bigint, seconds numeric, locked_out text, wal text);

SELECT count(es_append('account-' || i, 'MOVED', jsonb_build_object('amount', i % 1000)))
  FROM generate_series(1, :rows) i;
SELECT es_create_projection('balances', $$
	INSERT INTO balance
	SELECT stream, sum((payload->>'amount')::int), count(*) FROM es_batch GROUP BY stream
	ON CONFLICT (account) DO UPDATE SET
		amount = balance.amount + excluded.amount,
		movements = balance.movements + excluded.movements
	$$, tables => '{balance}');
SELECT es_wait('balances', es_settled(), '10 min');
INSERT INTO remark SELECT account FROM balance;

-- Rebuild with so many percent of the rows that differ from what they should be.
CREATE PROCEDURE rebuild(share int) LANGUAGE plpgsql AS $$
DECLARE
	before pg_lsn;
BEGIN
	UPDATE balance SET movements = 0 WHERE abs(hashtext(account)) % 100 < share;
	COMMIT;
	CHECKPOINT;
	before := pg_current_wal_lsn();
	PERFORM es_rebuild('balances');
	COMMIT;
	WHILE EXISTS (SELECT FROM es_stat_rebuild WHERE finished_at IS NULL) LOOP
		PERFORM pg_sleep(0.02);
		COMMIT;
	END LOOP;
	INSERT INTO result
	SELECT 'merge', share, rows_updated, round(EXTRACT(epoch FROM merge_time), 3), 'never',
		   pg_size_pretty(pg_current_wal_lsn() - before)
	  FROM es_stat_rebuild ORDER BY rebuild DESC LIMIT 1;
	COMMIT;
END $$;
VACUUM ANALYZE;
CALL rebuild(0);
CALL rebuild(1);
CALL rebuild(10);
CALL rebuild(100);

SELECT es_drop_projection('balances');
CREATE SCHEMA shadow;
SELECT pg_current_wal_lsn() AS before \gset
CREATE TABLE shadow.balance (LIKE balance INCLUDING ALL);
INSERT INTO shadow.balance TABLE balance;
ANALYZE shadow.balance;
BEGIN;
LOCK TABLE balance IN ACCESS EXCLUSIVE MODE;
SELECT clock_timestamp() AS locked \gset
SELECT count(*) AS orphans FROM remark r
 WHERE NOT EXISTS (SELECT FROM shadow.balance s WHERE s.account = r.account) \gset
CREATE SCHEMA old;
ALTER TABLE balance SET SCHEMA old;
ALTER TABLE shadow.balance SET SCHEMA public;
SELECT clock_timestamp() AS unlocked \gset
COMMIT;
INSERT INTO result
SELECT 'swap', NULL, NULL, round(EXTRACT(epoch FROM :'unlocked'::timestamptz - :'locked'), 3),
	   round(EXTRACT(epoch FROM :'unlocked'::timestamptz - :'locked'), 3) || ' s',
	   pg_size_pretty(pg_current_wal_lsn() - :'before');

\o
\pset null ''
SELECT way, differ AS "% that differ", written AS "rows written", seconds,
	   locked_out AS "readers locked out", wal AS "WAL, with the shadow's"
  FROM result;
