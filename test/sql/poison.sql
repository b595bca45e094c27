--
-- Events that cannot be applied: stopping, skipping, parking, retrying.
--
SET client_min_messages = warning;
CREATE TABLE poison_model (seq bigserial, stream text, version bigint, amount int,
	UNIQUE (stream, version));

SELECT es_create_projection('poison', $$
	INSERT INTO poison_model (stream, version, amount)
	SELECT stream, version, (payload->>'amount')::int FROM es_batch ORDER BY position
	$$, categories => '{poison}', on_error => 'skip', start_after => es_settled());

-- A hundred events, three of which no retry will make good.
SELECT es_settled() AS before \gset
SELECT count(*) FROM generate_series(1, 100) i,
	LATERAL es_append('poison-' || i % 10, 'T',
		jsonb_build_object('amount', CASE WHEN i IN (33, 34, 83) THEN 'bad' || i ELSE i::text END));
SELECT es_wait('poison', es_settled(), '60 s');
SELECT stream, version, status, attempts, sqlstate, error
  FROM es.dead_letter WHERE projection = 'poison' ORDER BY position;
SELECT status, dead_letters, last_error FROM es_projections WHERE name = 'poison';
SELECT count(*) FROM poison_model;
-- Nothing of a stream was applied behind its dead letter.
SELECT stream, max(version) FROM poison_model GROUP BY 1 HAVING max(version) <> 10 ORDER BY 1;
-- The narrowing found just these, and says so once each.
SELECT count(*), count(DISTINCT position) FROM es_projection_errors WHERE projection = 'poison';

-- Whoever waits for such an event is told.
SELECT position AS bad33 FROM es.dead_letter
 WHERE projection = 'poison' AND error LIKE '%bad33%' \gset
SELECT position AS bad34 FROM es.dead_letter
 WHERE projection = 'poison' AND error LIKE '%bad34%' \gset
SELECT position AS bad83 FROM es.dead_letter
 WHERE projection = 'poison' AND stream = 'poison-3' AND version = 9 \gset
\set VERBOSITY sqlstate
SELECT es_wait('poison', :bad33);
\set VERBOSITY default

-- Retried in vain: another attempt, nothing else changes.
SET client_min_messages = error;
SELECT es_retry('poison', :bad33);
SELECT version, status, attempts FROM es.dead_letter
 WHERE projection = 'poison' AND stream = 'poison-3' ORDER BY position;

-- Given up: what was parked goes on, in order, up to the next that fails.
SELECT es_discard('poison', :bad33, 'a typo of the importer');
SELECT version, status, attempts, discarded_by = session_user AS by_me, reason
  FROM es.dead_letter
 WHERE projection = 'poison' AND stream = 'poison-3' ORDER BY position;
\set VERBOSITY sqlstate
SELECT es_retry('poison', :bad33);
SELECT es_discard('poison', :bad33, 'again');
SELECT es_retry('poison', 1);
SELECT es_discard('poison', :bad34, '');
\set VERBOSITY default

-- The query is mended: what failed is applied, then what waited, in order.
SELECT es_alter_projection('poison', query => $$
	INSERT INTO poison_model (stream, version, amount)
	SELECT stream, version, regexp_replace(payload->>'amount', '\D', '')::int
	  FROM es_batch ORDER BY position $$);
SELECT es_alter_projection('poison', query => $$
	INSERT INTO poison_model (stream, version, amount)
	SELECT stream, version, regexp_replace(payload->>'amount', '\D', '', 'g')::int
	  FROM es_batch ORDER BY position $$);
SELECT es_retry('poison', :bad34);
SELECT es_retry('poison', :bad83);
SELECT count(*) FROM es.dead_letter WHERE projection = 'poison' AND status <> 'discarded';
SELECT count(*), sum(amount) = 5050 - 33 AS all_but_the_discarded FROM poison_model;
SELECT count(*) AS out_of_order FROM (
	SELECT version < lag(version) OVER (PARTITION BY stream ORDER BY seq) AS wrong
	  FROM poison_model) s
 WHERE wrong;

-- The stream goes on as if nothing had happened.
SELECT version FROM es_append('poison-3', 'T', '{"amount": 1}');
SELECT es_wait('poison', es_settled(), '60 s');
SELECT max(version) FROM poison_model WHERE stream = 'poison-3';

-- Parked events can be given up alone, and the failed one later.
SELECT es_alter_projection('poison', query => $$
	INSERT INTO poison_model (stream, version, amount)
	SELECT stream, version, (payload->>'amount')::int FROM es_batch ORDER BY position $$);
SELECT position AS p1 FROM es_append('poison-x', 'T', '{"amount": "x"}') \gset
SELECT position AS p2 FROM es_append('poison-x', 'T', '{"amount": 2}') \gset
SELECT position AS p3 FROM es_append('poison-x', 'T', '{"amount": 3}') \gset
SELECT position AS p4 FROM es_append('poison-y', 'T', '{"amount": 0}') \gset
SELECT es_wait('poison', :p4);
SELECT es_alter_projection('poison', partitions => 3);
SELECT es_discard('poison', :p2, 'not wanted');
SELECT es_discard('poison', :p1, 'not wanted either');
SELECT version, amount FROM poison_model WHERE stream = 'poison-x';

-- on_error 'stop': the projection waits in front of the event ...
SELECT es_alter_projection('poison', on_error => 'stop');
SELECT position AS stopper FROM es_append('poison-s', 'T', '{"amount": "s"}') \gset
SELECT position AS behind FROM es_append('poison-s', 'T', '{"amount": 7}') \gset
\set VERBOSITY sqlstate
SELECT es_wait('poison', :behind);
\set VERBOSITY default
SELECT status, last_error, last_error_sqlstate, last_error_position = :stopper AS there
  FROM es_projections WHERE name = 'poison';
-- ... until it is mended, or given up.
SELECT es_retry('poison', :stopper);
\set VERBOSITY sqlstate
SELECT es_wait('poison', :behind);
\set VERBOSITY default
SELECT es_discard('poison', :stopper, 'noise');
SELECT es_wait('poison', :behind);
SELECT version, amount FROM poison_model WHERE stream = 'poison-s';
SELECT status, last_error FROM es_projections WHERE name = 'poison';
SELECT stream, version, status, reason
  FROM es.dead_letter WHERE projection = 'poison' ORDER BY position;

-- Only the owner.
CREATE ROLE regress_es_other;
SELECT es_grant('regress_es_other', 'projector');
SET ROLE regress_es_other;
SELECT es_retry('poison', 1);
SELECT es_discard('poison', 1, 'mine');
SELECT es_alter_projection('poison', batch_size => 1);
RESET ROLE;
DROP OWNED BY regress_es_other;
DROP ROLE regress_es_other;

SELECT es_drop_projection('poison');
SELECT count(*) FROM es.dead_letter;
SELECT count(*) FROM es.projection_error WHERE projection = 'poison';
DROP TABLE poison_model;
