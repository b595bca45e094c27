-- Commands: what happens, what is rejected and what a rejection leaves behind,
-- told as the rules of a shop.
\set QUIET on
SELECT plan(39);

--
-- The shop
--

CREATE DOMAIN shop_amount AS numeric(10,2) NOT NULL CHECK (VALUE > 0);
CREATE TYPE shop_customer AS (name text, email text);
CREATE TYPE shop_order AS (customer text, amount shop_amount);

CREATE FUNCTION shop_may_order(state jsonb, command es.command) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	IF NOT EXISTS (SELECT FROM es_stream('customer-' || (command.payload->>'customer'))) THEN
		RAISE EXCEPTION 'customer "%" is unknown', command.payload->>'customer'
			USING HINT = 'Register the customer first.';
	END IF;
END
$$;

SELECT es_create_command('REGISTER', 'customer', 'CUSTOMER_REGISTERED',
						 creates => true, payload_type => 'shop_customer');
SELECT es_create_command('MOVE', 'customer', 'CUSTOMER_MOVED', creates => false);
SELECT es_create_command('ORDER', 'order', 'ORDER_PLACED', creates => true,
						 payload_type => 'shop_order',
						 validate => 'shop_may_order(jsonb, es.command)');
SELECT es_create_command('NOTE', 'customer', 'NOTED');

-- Everything that a rejection must leave as it was.
CREATE FUNCTION pg_temp.log() RETURNS text LANGUAGE sql AS $$
	SELECT format('%s events up to %s, %s results of commands, settled up to %s, %s in flight',
		(SELECT count(*) FROM es.event), (SELECT max("position") FROM es.event),
		(SELECT count(*) FROM es.command_log), es_settled(),
		(SELECT count(*) FROM es_stat_append))
$$;
-- A statement must fail like this and leave the log as it was.
CREATE FUNCTION pg_temp.rejects(statement text, code text, message text, description text)
RETURNS SETOF text LANGUAGE plpgsql AS $$
DECLARE
	before text := pg_temp.log();
BEGIN
	RETURN NEXT throws_ok(statement, code, message, description);
	RETURN NEXT is(pg_temp.log(), before, description || ': the log is as it was');
END
$$;

--
-- A command becomes an event
--

SELECT results_eq(
	$$SELECT stream, version, events, duplicate FROM es_submit('REGISTER', 'ann', '{"name": "Ann"}')$$,
	$$VALUES ('customer-ann', 1::bigint, 1, false)$$,
	'a customer registers');
SELECT is(
	(SELECT format('%s %s %s', version, type, payload) FROM es_stream('customer-ann')),
	'1 CUSTOMER_REGISTERED {"name": "Ann"}',
	'which is one event, with the payload of the command');
SELECT results_eq(
	$$SELECT version FROM es_submit('MOVE', 'ann', '{"to": "Rome"}')$$, ARRAY[2::bigint],
	'she moves, and is at version 2');
SELECT results_eq(
	$$SELECT version FROM es_submit('ORDER', '1', '{"customer": "ann", "amount": 10}')$$, ARRAY[1::bigint],
	'she orders');
SELECT is(es_settled(), (SELECT max("position") FROM es.event), 'all of it is settled');

--
-- Rejections: ES002
--

SELECT pg_temp.rejects($$SELECT es_submit('REGISTER', 'ann', '{"name": "Other Ann"}')$$,
	'ES002', 'customer "ann" already exists', 'nobody registers twice');
SELECT pg_temp.rejects($$SELECT es_submit('MOVE', 'bob')$$,
	'ES002', 'customer "bob" does not exist', 'who is not registered cannot move');
SELECT pg_temp.rejects($$SELECT es_submit('ORDER', '2', '{"customer": "bob", "amount": 10}')$$,
	'ES002', 'customer "bob" is unknown', 'a validator rejects in its own words');
SELECT pg_temp.rejects($$SELECT es_submit('ORDER', '2', '{"customer": "ann", "amount": 0}')$$,
	'ES002', 'payload of command "ORDER" does not fit type shop_order', 'an amount must be positive');
SELECT pg_temp.rejects($$SELECT es_submit('ORDER', '2', '{"customer": "ann"}')$$,
	'ES002', 'payload of command "ORDER" does not fit type shop_order', 'an amount must be there');
SELECT pg_temp.rejects($$SELECT es_submit('ORDER', '2', '{"customer": "ann", "amount": 1, "colour": "red"}')$$,
	'ES002', 'payload of command "ORDER" has an unknown key "colour"', 'a key must be known');

--
-- Unknown commands: ES003
--

SELECT pg_temp.rejects($$SELECT es_submit('CANCEL', '1')$$,
	'ES003', 'command "CANCEL" does not exist', 'a command must be known');
SELECT pg_temp.rejects($$SELECT es_submit('order', '1')$$,
	'ES003', 'command "order" does not exist', 'by its very name');

--
-- Versions: ES001
--

SELECT results_eq(
	$$SELECT version FROM es_submit('MOVE', 'ann', '{"to": "Oslo"}', expected_version => 2)$$, ARRAY[3::bigint],
	'who expects version 2 and finds it goes on');
SELECT pg_temp.rejects($$SELECT es_submit('MOVE', 'ann', '{"to": "Kyiv"}', expected_version => 2)$$,
	'ES001', 'stream "customer-ann" is not at the expected version', 'who comes second is told');
SELECT pg_temp.rejects($$SELECT es_submit('NOTE', 'bob', expected_version => 1)$$,
	'ES001', 'stream "customer-bob" is not at the expected version', 'nothing is at version 0');

--
-- Retries: one command id, one effect
--

SELECT results_eq(
	$$SELECT version, duplicate FROM es_submit('NOTE', 'ann', '{"n": 1}', '00000000-0000-0000-0000-0000000000c1')$$,
	$$VALUES (4::bigint, false)$$,
	'a command with an id is done');
SELECT pg_temp.log() AS log \gset
SELECT results_eq(
	$$SELECT version, duplicate FROM es_submit('NOTE', 'ann', '{"n": 1}', '00000000-0000-0000-0000-0000000000c1')$$,
	$$VALUES (4::bigint, true)$$,
	'a retry gets the first result');
SELECT is(pg_temp.log(), :'log', 'and does nothing');
SELECT pg_temp.rejects(
	$$SELECT es_submit('NOTE', 'ann', '{"n": 2}', '00000000-0000-0000-0000-0000000000c1')$$,
	'23505', 'command id 00000000-0000-0000-0000-0000000000c1 was used for another command',
	'an id stands for one command');
SELECT pg_temp.rejects(
	$$SELECT es_submit('MOVE', 'bob', '{}', '00000000-0000-0000-0000-0000000000c2')$$,
	'ES002', 'customer "bob" does not exist', 'a rejected command is not remembered');
SELECT lives_ok(
	$$SELECT es_submit('REGISTER', 'bob', '{"name": "Bob"}', '00000000-0000-0000-0000-0000000000c2')$$,
	'so that its id is still free');

--
-- In a transaction, a rejection takes back no more than itself
--

BEGIN;
SELECT lives_ok($$SELECT es_submit('ORDER', '3', '{"customer": "bob", "amount": 1}')$$, 'an order in a transaction');
SELECT throws_ok($$SELECT es_submit('ORDER', '3', '{"customer": "bob", "amount": 2}')$$, 'ES002');
SELECT lives_ok($$SELECT es_submit('ORDER', '4', '{"customer": "bob", "amount": 3}')$$, 'and another one');
COMMIT;
SELECT is(
	(SELECT string_agg(format('%s %s %s', stream, version, payload->>'amount'), ', ' ORDER BY "position")
	   FROM es.event WHERE stream IN ('order-3', 'order-4')),
	'order-3 1 1, order-4 1 3',
	'both are there, and nothing of the one that was rejected between them');
SELECT is((SELECT max(b."position") - max(a."position") FROM es_stream('order-3') a, es_stream('order-4') b), 1::bigint,
	'not even a position');

SELECT * FROM finish();

SELECT es_drop_command('REGISTER'), es_drop_command('MOVE'), es_drop_command('ORDER'), es_drop_command('NOTE');
DROP FUNCTION shop_may_order;
DROP TYPE shop_customer, shop_order;
DROP DOMAIN shop_amount;
SET es.allow_destructive = on;
DELETE FROM es.event WHERE category IN ('customer', 'order');
DELETE FROM es.command_log WHERE stream LIKE 'customer-%' OR stream LIKE 'order-%';
