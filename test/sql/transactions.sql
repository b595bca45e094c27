--
-- Appending in transactions: savepoints, rollbacks, isolation levels, locks.
--
-- The transactions that leave a trace in the session come first.

\set VERBOSITY default

-- What a rollback takes back is not remembered: the log gets the identity of
-- its database with the first append that commits.
BEGIN;
CREATE TEMP TABLE identities AS SELECT * FROM es.identity;
SET LOCAL es.allow_destructive = on;
DELETE FROM es.identity;
COMMIT;
BEGIN;
SELECT version FROM es_append('transactions-0', 'ROLLED_BACK');
SELECT version FROM es_append('transactions-0', 'ROLLED_BACK');
SELECT count(*) FROM es.identity;
ROLLBACK;
SELECT count(*) FROM es.identity;
SELECT es.suspended();
BEGIN;
SAVEPOINT a;
SELECT version FROM es_append('transactions-0', 'ROLLED_BACK');
ROLLBACK TO a;
SELECT version FROM es_append('transactions-0', 'ROLLED_BACK');
ROLLBACK;
SELECT version FROM es_append('transactions-0', 'COMMITTED');
SELECT version FROM es_append('transactions-0', 'COMMITTED');
SELECT count(*), es.suspended() FROM es.identity;

\pset format unaligned
\pset tuples_only on

-- Savepoints: what is rolled back leaves neither an event nor a version.
BEGIN;
SELECT version FROM es_append('transactions-1', 'A');
SAVEPOINT a;
SELECT version FROM es_append('transactions-1', 'B');
SAVEPOINT b;
SELECT version FROM es_append('transactions-1', 'C');
ROLLBACK TO b;
SELECT version FROM es_append('transactions-1', 'D');
RELEASE b;
ROLLBACK TO a;
SELECT version FROM es_append('transactions-1', 'E', expected_version => 1, tags => '{x}');
SELECT es_append('transactions-1', 'F', expected_version => 1);
ROLLBACK TO a;
SELECT version FROM es_append('transactions-1', 'G', expected_version => 1);
COMMIT;
SELECT version, type FROM es_stream('transactions-1');
SELECT count(*) FROM es.tag JOIN es.event USING ("position") WHERE stream = 'transactions-1';
-- The transaction holds the settled position back at its first position, also
-- where the event at that was rolled back.
BEGIN;
SAVEPOINT a;
SELECT "position" FROM es_append('transactions-1', 'H') \gset
ROLLBACK TO a;
SELECT es_settled() = :position - 1 AS held_back, count(*) FROM es_stat_append;
COMMIT;
SELECT es_settled() >= :position AS settled;

--
-- Locks: one for each stream, and one for all from es.max_stream_locks on
--

CREATE VIEW transactions_locks AS
	SELECT CASE WHEN locktype = 'object' THEN 'stream' ELSE relation::regclass::text END AS on,
		   mode, count(*)
	  FROM pg_locks
	 WHERE pid = pg_backend_pid() AND granted
	   AND (locktype = 'object' AND classid = 'es.event'::regclass
			OR relation = 'es.event'::regclass AND mode <> 'AccessShareLock')
	 GROUP BY 1, 2 ORDER BY 1, 2;
SHOW es.max_stream_locks;
SET es.max_stream_locks = 3;
BEGIN;
SELECT es_append('transactions-l1', 'A') IS NOT NULL, es_append('transactions-l2', 'A') IS NOT NULL,
	   es_append('transactions-l1', 'A') IS NOT NULL;
SELECT * FROM transactions_locks;
SELECT es_append('transactions-l3', 'A') IS NOT NULL;
SELECT * FROM transactions_locks;
-- Streams that are locked need no other lock.
SELECT version FROM es_append('transactions-l2', 'A');
SELECT * FROM transactions_locks;
SELECT version FROM es_append('transactions-l4', 'A');
SELECT * FROM transactions_locks;
SELECT count(es_append('transactions-m' || n, 'A')) FROM generate_series(1, 500) n;
SELECT * FROM transactions_locks;
COMMIT;
SELECT * FROM transactions_locks;
-- Each transaction counts anew, and what is rolled back does not count.
BEGIN;
SELECT es_append('transactions-l1', 'A') IS NOT NULL, es_append('transactions-l2', 'A') IS NOT NULL;
DO $$
BEGIN
	FOR i IN 1..10 LOOP
		BEGIN
			PERFORM es_append('transactions-l5', 'A');
			RAISE EXCEPTION 'no';
		EXCEPTION WHEN raise_exception THEN NULL;
		END;
	END LOOP;
END
$$;
SELECT * FROM transactions_locks;
SAVEPOINT a;
SELECT version FROM es_append('transactions-l6', 'A');
SAVEPOINT b;
SELECT version FROM es_append('transactions-l7', 'A');
RELEASE b;
SELECT * FROM transactions_locks;
ROLLBACK TO a;
SELECT * FROM transactions_locks;
SELECT version FROM es_append('transactions-l6', 'A');
SELECT * FROM transactions_locks;
SELECT version FROM es_append('transactions-l7', 'A');
SELECT * FROM transactions_locks;
ROLLBACK;
RESET es.max_stream_locks;

--
-- Where nothing can be appended
--

BEGIN READ ONLY;
SELECT es_append('transactions-2', 'A');
ROLLBACK;
BEGIN READ ONLY;
SELECT es_append_batch('transactions-2', '[{"type": "A"}]');
ROLLBACK;
BEGIN;
SELECT version FROM es_append('transactions-2', 'A');
SET TRANSACTION READ ONLY;
SELECT version FROM es_append('transactions-2', 'A');
ROLLBACK;
-- COMMIT PREPARED would run no callback that could free what the appender
-- holds back.
BEGIN;
SELECT version FROM es_append('transactions-2', 'A');
PREPARE TRANSACTION 'transactions';
SELECT count(*) FROM es_stat_append;
BEGIN;
SAVEPOINT a;
SELECT version FROM es_append('transactions-2', 'A');
ROLLBACK TO a;
PREPARE TRANSACTION 'transactions';
SELECT count(*) FROM es_stream('transactions-2');
SELECT count(*) FROM pg_prepared_xacts WHERE database = current_database();

--
-- Isolation levels, in one session (test/isolation has two)
--

BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT version FROM es_append('transactions-3', 'A', expected_version => 0);
SELECT version FROM es_append('transactions-3', 'A', expected_version => 1);
SAVEPOINT a;
SELECT version FROM es_append('transactions-3', 'A');
ROLLBACK TO a;
SELECT version FROM es_append('transactions-3', 'A', expected_version => 2);
COMMIT;
BEGIN ISOLATION LEVEL SERIALIZABLE;
SELECT version FROM es_append('transactions-3', 'A', expected_version => 3);
SELECT max(version) FROM es_stream('transactions-3');
COMMIT;
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT count(*) FROM es_stream('transactions-3');
SELECT version FROM es_append('transactions-3', 'A');
COMMIT;

-- COMMIT AND CHAIN, and procedures that commit.
BEGIN;
SELECT version FROM es_append('transactions-4', 'A');
COMMIT AND CHAIN;
SELECT count(*) FROM es_stat_append;
SELECT version FROM es_append('transactions-4', 'A');
ROLLBACK AND CHAIN;
SELECT count(*) FROM es_stat_append;
SELECT version FROM es_append('transactions-4', 'A');
COMMIT;
CREATE PROCEDURE transactions_procedure() LANGUAGE plpgsql AS $$
BEGIN
	FOR i IN 1..4 LOOP
		PERFORM es_append('transactions-5', 'A', jsonb_build_object('i', i));
		IF i % 2 = 0 THEN ROLLBACK; ELSE COMMIT; END IF;
	END LOOP;
END
$$;
CALL transactions_procedure();
SELECT version, payload FROM es_stream('transactions-5');

DROP PROCEDURE transactions_procedure;
DROP VIEW transactions_locks;
SET es.allow_destructive = on;
DELETE FROM es.event WHERE category = 'transactions';
