--
-- Versions have no gap, whatever was rolled back: what the session remembers of
-- a stream is a hint, and a wrong one only costs a second look.
--
SET client_min_messages = warning;
SELECT es_append('regress_versions-1', 'BEGUN') IS NOT NULL AS appended;

-- Rolled back: what is remembered is too high.
BEGIN;
SELECT count(es_append('regress_versions-1', 'WENT_ON')) FROM generate_series(1, 5);
ROLLBACK;
SELECT (es_append('regress_versions-1', 'WENT_ON')).version;

-- The same in a subtransaction.
BEGIN;
SAVEPOINT s;
SELECT (es_append('regress_versions-1', 'WENT_ON')).version FROM generate_series(1, 3);
ROLLBACK TO s;
SELECT (es_append('regress_versions-1', 'WENT_ON')).version;
COMMIT;

-- A stream that was rolled back altogether does not exist.
BEGIN;
SELECT (es_append('regress_versions-2', 'BEGUN')).version;
ROLLBACK;
SELECT (es_append('regress_versions-2', 'BEGUN', expected_version => 0)).version;

-- Long streams, whose entries fill many pages of the index, and batches.
SELECT max((es_append('regress_versions-1', 'WENT_ON')).version) FROM generate_series(1, 1000);
SELECT version FROM es_append_batch('regress_versions-1', '[{"type": "A"}, {"type": "B"}]');
SELECT (es_append('regress_versions-1', 'WENT_ON', expected_version => 1005)).version;

SELECT stream, count(*), max(version) FROM es.event
 WHERE category = 'regress_versions' GROUP BY stream ORDER BY stream;
