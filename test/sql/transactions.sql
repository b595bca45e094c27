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
