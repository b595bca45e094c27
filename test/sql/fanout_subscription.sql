-- Subscriptions: the interface, and what is refused.
\set VERBOSITY terse
SELECT es_settled() AS base \gset

CREATE FUNCTION appended(stream text, n integer DEFAULT 1) RETURNS void LANGUAGE sql AS
	$$SELECT es_append(stream, 'THING_HAPPENED', jsonb_build_object('n', i)) FROM generate_series(1, n) i$$;
SELECT appended('fsub-1', 3);

-- Definitions
SELECT es_create_subscription('fsub', ARRAY['fsub'], start_after => :base);
SELECT es_create_subscription('fsub');
SELECT es_create_subscription('');
SELECT es_create_subscription(NULL);
SELECT es_create_subscription(repeat('x', 513));
SELECT es_create_subscription('fsub2', partitions => 0);
SELECT es_create_subscription('fsub2', partitions => 100000);
SELECT es_create_subscription('fsub2', start_after => -1);
SELECT es_create_subscription('fsub2', max_deliveries => 0);
SELECT es_create_subscription('fsub2', ARRAY[]::text[]);
SELECT es_create_subscription('fsub2', ARRAY['a', NULL]);
SELECT es_create_subscription('fsub2', types => ARRAY['']);
SELECT es_create_subscription('fsub2', ARRAY['nobody has heard of it']);
SELECT es_drop_subscription('fsub2');
SELECT es_drop_subscription('fsub2');

-- What was not acknowledged comes again; what was does not.
CREATE FUNCTION fetched(consumer text, max_count integer DEFAULT 10, lease interval DEFAULT '1 min',
	wait interval DEFAULT '0', subscription text DEFAULT 'fsub')
	RETURNS TABLE (stream text, version bigint, payload jsonb, deliveries integer) LANGUAGE sql AS
	$$SELECT stream, version, payload, deliveries FROM es_fetch(subscription, consumer, max_count, lease, wait)$$;
SELECT * FROM fetched('ann', 2);
SELECT * FROM fetched('ann', 2);
SELECT es_ack('fsub', 'ann', :base + 1);
SELECT es_ack('fsub', 'ann', :base + 1);
SELECT * FROM fetched('ann', 2);
SELECT "position" - :base AS "position", consumer, lag_events, redeliveries, delivered_position - :base AS delivered
  FROM es_subscriptions WHERE name = 'fsub';

-- Bad input
SELECT * FROM fetched('ann', 0);
SELECT * FROM fetched('ann', NULL);
SELECT * FROM fetched('');
SELECT * FROM fetched(repeat('x', 513));
SELECT * FROM fetched('ann', lease => '0');
SELECT * FROM fetched('ann', lease => '1 year');
SELECT * FROM fetched('ann', lease => '-1 s');
SELECT * FROM fetched('ann', lease => NULL);
SELECT * FROM fetched('ann', wait => '-1 s');
SELECT * FROM fetched('ann', wait => '1 year');
SELECT * FROM fetched('ann', subscription => 'none');
SELECT es_ack('fsub', 'ann', NULL);
SELECT es_ack('none', 'ann', 1);
SELECT es_ack('fsub', 'ann', 1, 1);
SELECT es_nack('fsub', 'ann', :base + 3, delay => '-1 s');
SELECT es_heartbeat('fsub', 'ann', '0');
-- beyond what was fetched
DO $$BEGIN PERFORM es_ack('fsub', 'ann', 9000000000000000000);
EXCEPTION WHEN invalid_parameter_value THEN RAISE NOTICE 'refused: %', regexp_replace(sqlerrm, '\d+', 'N'); END$$;
-- by somebody who has fetched nothing
DO $$BEGIN PERFORM es_ack('fsub', 'eve', 1);
EXCEPTION WHEN SQLSTATE 'ES005' THEN RAISE NOTICE 'refused: %', sqlerrm; END$$;
\set VERBOSITY terse
-- What is acknowledged or was not given cannot be given back.
DO $$BEGIN PERFORM es_nack('fsub', 'ann', min(position)) FROM es.event WHERE category = 'fsub';
EXCEPTION WHEN invalid_parameter_value THEN RAISE NOTICE 'refused'; END$$;
SELECT es_nack('fsub', 'ann', 9000000000000000000);
BEGIN ISOLATION LEVEL REPEATABLE READ;
SELECT * FROM fetched('ann', wait => '1 s');
ROLLBACK;
BEGIN READ ONLY;
SELECT * FROM fetched('ann');
ROLLBACK;

-- An event that is given back comes again, and what is behind it.
SELECT es_nack('fsub', 'ann', :base + 2, 'not now');
SELECT * FROM fetched('ann');
SELECT last_error, last_error_position - :base AS last_error_position, redeliveries
  FROM es_subscriptions WHERE name = 'fsub';
-- Until then nothing behind it can be acknowledged.
SELECT es_nack('fsub', 'ann', :base + 2, 'later', '1 hour');
DO $$BEGIN PERFORM es_ack('fsub', 'ann', max(position)) FROM es.event WHERE category = 'fsub';
EXCEPTION WHEN SQLSTATE 'ES005' THEN RAISE NOTICE 'refused'; END$$;
SELECT * FROM fetched('ann');
SELECT last_error, retry_at - now() > '50 min' AS later FROM es_subscriptions WHERE name = 'fsub';
UPDATE es.subscription_partition SET retry_at = NULL WHERE subscription = 'fsub';

-- After max_deliveries it is parked, and what follows in its stream waits
-- behind it; other streams go on.
SELECT appended('fsub-2', 1), appended('fsub-1', 1);
SELECT * FROM fetched('ann');
SELECT es_nack('fsub', 'ann', :base + 2, 'third time');
SELECT * FROM fetched('ann');
SELECT es_nack('fsub', 'ann', :base + 2, 'fourth time');
SELECT * FROM fetched('ann');
SELECT es_nack('fsub', 'ann', :base + 2, 'fifth time');
SELECT * FROM fetched('ann');
SELECT es_ack('fsub', 'ann', :base + 4);
SELECT * FROM fetched('ann');
SELECT "position" - :base AS "position", stream, version, status, deliveries, error
  FROM es_dead_deliveries WHERE subscription = 'fsub' ORDER BY 1;
SELECT "position" - :base AS "position", lag_events, parked_events, last_error
  FROM es_subscriptions WHERE name = 'fsub';
SELECT problem FROM es_health(), unnest(problems) problem WHERE problem LIKE 'Subscription %';

-- They can be handed out again, in their order.
\set VERBOSITY sqlstate
SELECT es_retry_delivery('fsub', :base + 1);
SELECT es_retry_delivery('fsub', :base + 5);
\set VERBOSITY terse
SELECT es_retry_delivery('fsub', :base + 2);
SELECT appended('fsub-1', 1);
SELECT * FROM fetched('ann', 2);
SELECT es_nack('fsub', 'ann', :base + 3, 'not yet');
SELECT * FROM fetched('ann');
SELECT es_ack('fsub', 'ann', :base + 5);
SELECT * FROM fetched('ann');
SELECT es_ack('fsub', 'ann', :base + 6);
SELECT * FROM fetched('ann');
SELECT * FROM es_dead_deliveries WHERE subscription = 'fsub';

-- Nobody else gets what somebody holds, until it leaves.
SELECT appended('fsub-3');
SELECT * FROM fetched('ann');
SELECT * FROM fetched('bob');
SELECT es_heartbeat('fsub', 'ann');
SELECT es_leave('fsub', 'ann');
SELECT * FROM fetched('bob');
\set VERBOSITY sqlstate
SELECT es_heartbeat('fsub', 'ann');
-- A lease ends; then the partition is another one's.
SELECT * FROM fetched('bob', lease => '10 ms');
SELECT pg_sleep(0.02);
SELECT es_ack('fsub', 'bob', :base + 7);
SELECT es_heartbeat('fsub', 'bob');
SELECT * FROM fetched('ann');
SELECT es_ack('fsub', 'bob', :base + 7);
SELECT es_nack('fsub', 'bob', :base + 7);
\set VERBOSITY terse
SELECT es_ack('fsub', 'ann', :base + 7);
-- An acknowledgement that is repeated does nothing, and is told from one that
-- was never right when the partition has gone to another consumer.
SELECT appended('fsub-3');
SELECT * FROM fetched('ann');
SELECT es_ack('fsub', 'ann', max("position")) FROM es.event WHERE category = 'fsub';
SELECT es_ack('fsub', 'ann', max("position")) FROM es.event WHERE category = 'fsub';
UPDATE es.subscription_partition SET lease_until = now() WHERE subscription = 'fsub';
UPDATE es.subscription_consumer SET active_until = now() WHERE subscription = 'fsub';
SELECT appended('fsub-3');
SELECT * FROM fetched('bob');
\set VERBOSITY sqlstate
SELECT es_ack('fsub', 'ann', max("position")) FROM es.event WHERE category = 'fsub';
-- An event of another category was never given to anybody.
SELECT es_append('fother-1', 'THING_HAPPENED') IS NOT NULL AS appended;
SELECT es_nack('fsub', 'bob', max("position")) FROM es.event WHERE category = 'fother';
\set VERBOSITY terse

-- An event that kills its consumers is found, and parked alone.
SELECT es_create_subscription('poison', ARRAY['fpoison'], start_after => :base, max_deliveries => 4);
SELECT appended('fpoison-' || i) FROM generate_series(1, 16) i \g /dev/null
CREATE FUNCTION consume(poison text, rounds integer) RETURNS text LANGUAGE plpgsql AS
$$
DECLARE
	e record;
	log text := '';
	killed boolean;
	last bigint;
BEGIN
	FOR round IN 1 .. rounds LOOP
		killed := false;
		last := NULL;
		FOR e IN SELECT * FROM es_fetch('poison', 'ann') LOOP
			killed := killed OR e.stream = poison;
			last := e.position;
			log := log || split_part(e.stream, '-', 2) || ' ';
		END LOOP;
		log := log || CASE WHEN killed THEN '+ ' ELSE '| ' END;
		CONTINUE WHEN killed OR last IS NULL;
		PERFORM es_ack('poison', 'ann', last);
	END LOOP;
	RETURN log;
END
$$;
SELECT consume('fpoison-6', 20);
SELECT stream, status, deliveries, error FROM es_dead_deliveries WHERE subscription = 'poison';

-- Partitions are shared evenly, and change hands without anything twice.
SELECT es_create_subscription('shared', ARRAY['fshared'], partitions => 10, start_after => :base);
SELECT appended('fshared-' || i) FROM generate_series(1, 40) i \g /dev/null
CREATE FUNCTION holds() RETURNS text LANGUAGE sql AS
	$$SELECT string_agg(n::text, ' ' ORDER BY n DESC) FROM (SELECT count(*) AS n FROM es_subscriptions
	  WHERE name = 'shared' AND consumer IS NOT NULL GROUP BY consumer) c$$;
CREATE FUNCTION turn(who text) RETURNS integer LANGUAGE sql AS
$$
	WITH e AS MATERIALIZED (SELECT max("position") AS last, count(*)::int AS n, sum(deliveries) AS d
							  FROM es_fetch('shared', who, 4))
	SELECT n + coalesce(0 * length(es_ack('shared', who, last)::text), 0) + d::int - n FROM e WHERE last IS NOT NULL
$$;
SELECT turn('ann');
SELECT holds();
SELECT turn(who) FROM unnest(ARRAY['bob', 'cid', 'ann', 'bob', 'cid']) who \g /dev/null
SELECT holds();
SELECT turn(who) FROM unnest(ARRAY['ann', 'bob', 'cid', 'dan', 'ann', 'bob', 'cid', 'dan']) who \g /dev/null
SELECT holds();
SELECT es_leave('shared', 'ann'), es_leave('shared', 'bob');
SELECT turn(who) FROM unnest(ARRAY['cid', 'dan', 'cid', 'dan', 'cid', 'dan']) who \g /dev/null
SELECT holds();
SELECT max(lag_events), sum(redeliveries) FROM es_subscriptions WHERE name = 'shared';

-- What an earlier call gave is not acknowledged with what the last one gave.
SELECT es_create_subscription('again', ARRAY['fshared'], partitions => 4, start_after => :base);
SELECT count(*) FROM es_fetch('again', 'ann', 40);
SELECT es_ack('again', 'ann', max("position")) FROM es_fetch('again', 'ann', 10);
SELECT count(*), min(deliveries) FROM es_fetch('again', 'ann', 40);
SELECT es_ack('again', 'ann', max("position")) FROM es.event WHERE category = 'fshared';
SELECT count(*) FROM es_fetch('again', 'ann', 40);

-- To acknowledge is part of the transaction.
SELECT es_create_subscription('exact', ARRAY['fsub'], start_after => :base);
BEGIN;
SELECT count(*) FROM es_fetch('exact', 'ann');
SELECT es_ack('exact', 'ann', :base + 7);
ROLLBACK;
SELECT count(*), max(deliveries) FROM es_fetch('exact', 'ann');

-- Rights: those of the owner, and to read the log.
CREATE ROLE fsub_other;
SELECT es_grant('fsub_other', 'consumer');
SET ROLE fsub_other;
SELECT * FROM fetched('ann');
SELECT es_ack('fsub', 'ann', 1);
SELECT es_retry_delivery('fsub', 1);
SELECT es_drop_subscription('fsub');
SELECT es_create_subscription('its own', ARRAY['fsub'], start_after => :base);
SELECT * FROM fetched('ann', 1, subscription => 'its own');
RESET ROLE;
REVOKE SELECT ON es.event FROM fsub_other;
SET ROLE fsub_other;
SELECT * FROM fetched('ann', 1, subscription => 'its own');
SELECT es_create_subscription('another');
RESET ROLE;
SELECT es_drop_subscription(name) FROM es.subscription WHERE name IN ('fsub', 'poison', 'shared', 'exact', 'again', 'its own');
SELECT es_revoke('fsub_other', 'consumer');
DROP ROLE fsub_other;
DROP FUNCTION appended, fetched, consume, holds, turn;
