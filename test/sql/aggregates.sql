--
-- Aggregates and deciders: state folded from events, decided on under the
-- stream's lock.
--

-- What a statement gives, or the error that it raises.
CREATE FUNCTION aggregates_try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE statement INTO result;
	RETURN result;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
		hint = PG_EXCEPTION_HINT;
	RETURN format(E'%s: %s\n  detail: %s\n  hint: %s', SQLSTATE, message, detail, hint);
END
$$;
\pset format unaligned
\pset tuples_only on

--
-- An account that cannot be overdrawn
--
CREATE FUNCTION account_evolve(state jsonb, event es.event) RETURNS jsonb
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RETURN CASE event.type
		WHEN 'OPENED' THEN jsonb_build_object('balance', 0, 'owner', event.payload->>'owner')
		WHEN 'DEPOSITED' THEN state || jsonb_build_object('balance',
			(state->>'balance')::numeric + (event.payload->>'amount')::numeric)
		WHEN 'WITHDRAWN' THEN state || jsonb_build_object('balance',
			(state->>'balance')::numeric - (event.payload->>'amount')::numeric)
		ELSE state
	END;
END
$$;
-- With "to" it moves the money: events of two streams in one command.
CREATE FUNCTION account_withdraw(state jsonb, command es.command) RETURNS SETOF es.new_event
LANGUAGE plpgsql AS $$
DECLARE
	amount numeric := (command.payload->>'amount')::numeric;
	moved jsonb := jsonb_build_object('amount', amount);
BEGIN
	IF amount = 0 THEN
		RETURN;
	END IF;
	IF (state->>'balance')::numeric < amount THEN
		RAISE EXCEPTION 'the balance of % is %', command.id, state->>'balance';
	END IF;
	RETURN NEXT ROW('WITHDRAWN', moved, NULL, NULL, NULL)::es.new_event;
	IF command.payload ? 'to' THEN
		RETURN NEXT ROW('DEPOSITED', moved, '{"transfer": true}', ARRAY['transfer'],
						'account-' || (command.payload->>'to'))::es.new_event;
	END IF;
END
$$;
-- The other way to return a set, and from SQL.
CREATE FUNCTION account_deposit(state jsonb, command es.command) RETURNS SETOF es.new_event
LANGUAGE sql AS $$
	SELECT 'DEPOSITED', jsonb_build_object('amount', part), NULL::jsonb, NULL::text[], NULL::text
	  FROM jsonb_array_elements(command.payload->'parts') part
$$;
SELECT es_create_aggregate('account', 'account_evolve(jsonb, es.event)', snapshot_every => 3);
SELECT es_create_command('OPEN', 'account', 'OPENED', creates => true);
SELECT es_create_command('WITHDRAW', 'account', creates => false,
						 decide => 'account_withdraw(jsonb, es.command)');
SELECT es_create_command('DEPOSIT', 'account', creates => false,
						 decide => 'account_deposit(jsonb, es.command)');

SELECT stream, version, "position" IS NOT NULL, events, duplicate
  FROM es_submit('OPEN', 'ann', '{"owner": "Ann"}');
SELECT stream, version FROM es_submit('OPEN', 'bob', '{"owner": "Bob"}');
-- Several events, one, of two streams, none at all.
SELECT stream, version, events FROM es_submit('DEPOSIT', 'ann', '{"parts": [10, 20, 30, 40]}');
SELECT stream, version, events FROM es_submit('WITHDRAW', 'ann', '{"amount": 5}');
SELECT stream, version, events FROM es_submit('WITHDRAW', 'ann', '{"amount": 25, "to": "bob"}',
	metadata => '{"user": "ann"}');
SELECT stream, version, "position", events, duplicate FROM es_submit('WITHDRAW', 'ann', '{"amount": 0}');
SELECT stream, version, type, payload, metadata FROM es.event
 WHERE category = 'account' ORDER BY "position";
SELECT t.tag, e.stream FROM es.tag t JOIN es.event e USING ("position") WHERE tag = 'transfer';
SELECT es_state('account-ann'), es_state('account-bob');
-- A rejection, in the decider's words; nothing is appended.
SELECT aggregates_try($$SELECT version FROM es_submit('WITHDRAW', 'ann', '{"amount": 71}')$$);
SELECT aggregates_try($$SELECT version FROM es_submit('WITHDRAW', 'eve', '{"amount": 1}')$$);
SELECT aggregates_try($$SELECT version FROM es_submit('WITHDRAW', 'ann', '{"amount": 1}',
	expected_version => 3)$$);
-- An outcome without events has a result, too, that a retry gets.
SELECT version, "position", events, duplicate
  FROM es_submit('WITHDRAW', 'ann', '{"amount": 0}', '00000000-0000-0000-0000-00000000c001');
SELECT version FROM es_submit('WITHDRAW', 'ann', '{"amount": 1}');
SELECT version, "position", events, duplicate
  FROM es_submit('WITHDRAW', 'ann', '{"amount": 0}', '00000000-0000-0000-0000-00000000c001');
-- Within one statement, each decision sees those before it.
SELECT count(*) FROM generate_series(1, 69) i, es_submit('WITHDRAW', 'ann', '{"amount": 1}');
SELECT aggregates_try($$SELECT version FROM es_submit('WITHDRAW', 'ann', '{"amount": 1}')$$);
-- A decision that is rolled back leaves nothing in the session that knew it.
BEGIN;
SELECT version FROM es_submit('DEPOSIT', 'ann', '{"parts": [1000]}');
SELECT es_state('account-ann')->'balance';
ROLLBACK;
SELECT version FROM es_append('account-ann', 'DEPOSITED', '{"amount": 2}');
SELECT aggregates_try($$SELECT version FROM es_submit('WITHDRAW', 'ann', '{"amount": 3}')$$);
BEGIN;
SAVEPOINT s;
SELECT version FROM es_submit('DEPOSIT', 'ann', '{"parts": [1000]}');
ROLLBACK TO s;
SELECT version FROM es_submit('DEPOSIT', 'ann', '{"parts": [1]}');
SELECT aggregates_try($$SELECT version FROM es_submit('WITHDRAW', 'ann', '{"amount": 4}')$$);
COMMIT;
SELECT es_state('account-ann')->'balance';

--
-- As it was
--
SELECT v, es_state('account-ann', v) FROM generate_series(0, 7) v;
SELECT es_state('account-ann', at_time => recorded_at) = es_state('account-ann', version)
  FROM es.event WHERE stream = 'account-ann' AND version = 6;
SELECT es_state('account-ann', at_time => '2020-01-01');
SELECT es_state('account-ann', 3, '2100-01-01') = es_state('account-ann', 3);
SELECT es_state('account-nobody'), es_state('account-nobody', 0);
SELECT aggregates_try($$SELECT es_state('account-ann', 1000)$$);
SELECT aggregates_try($$SELECT es_state('account-ann', -1)$$);
SELECT aggregates_try($$SELECT es_state('nothing-1')$$);
SELECT aggregates_try($$SELECT es_state(NULL)$$);

--
-- The fold of 10,000 events, at every version, is the same from scratch, from
-- snapshots, and in the session that decided.
--
CREATE FUNCTION tally_evolve(state jsonb, event es.event) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
	SELECT jsonb_build_object('n', (state->>'n')::bigint + 1,
		'sum', ((state->>'sum')::bigint * 31 + (event.payload->>'x')::bigint) % 1000003)
$$;
CREATE FUNCTION tally_decide(state jsonb, command es.command) RETURNS SETOF es.new_event
LANGUAGE sql AS $$
	SELECT 'COUNTED', jsonb_build_object('x', ((command.payload->>'seed')::bigint * 7919 + i) % 1009,
			'seen', state), NULL::jsonb, NULL::text[], NULL::text
	  FROM generate_series(1, (command.payload->>'n')::integer) i
$$;
SELECT es_create_aggregate('tally', 'tally_evolve(jsonb, es.event)', '{"n": 0, "sum": 0}', 100);
SELECT es_create_command('COUNT', 'tally', decide => 'tally_decide(jsonb, es.command)');
SELECT sum(events) FROM generate_series(1, 395) i,
	es_submit('COUNT', '1', jsonb_build_object('seed', i, 'n', 1 + (i * 37) % 49));
-- Some by others than the decider, and those a state has to take in as well.
SELECT count(*) FROM generate_series(1, 50) i,
	es_append('tally-1', 'COUNTED', jsonb_build_object('x', i));
SELECT es_submit('COUNT', '1', jsonb_build_object('seed', 0, 'n',
	10000 - (SELECT max(version) FROM es.event WHERE stream = 'tally-1'))) IS NOT NULL;
SELECT max(version) FROM es.event WHERE stream = 'tally-1';
CREATE TEMP TABLE scratch AS
	WITH RECURSIVE f AS (
		SELECT 0::bigint AS version, '{"n": 0, "sum": 0}'::jsonb AS state
		UNION ALL
		SELECT e.version, tally_evolve(f.state, e)
		  FROM f JOIN es.event e ON e.stream = 'tally-1' AND e.version = f.version + 1)
	SELECT * FROM f;
SELECT count(*) >= 99 FROM es.snapshot WHERE stream = 'tally-1';
SELECT count(*), count(*) FILTER (WHERE es_state('tally-1', version) = state) FROM scratch;
-- What each decision saw is the state of the version that it was made at.
SELECT count(*) > 395, bool_and(s.state = e.payload->'seen')
  FROM es.event e
  JOIN scratch s ON s.version = (e.payload->'seen'->>'n')::bigint
 WHERE e.stream = 'tally-1' AND e.payload ? 'seen';
SELECT bool_and(es_state('tally-1', at_time => e.recorded_at) =
	(SELECT s.state FROM scratch s JOIN es.event l USING (version)
	  WHERE l.stream = 'tally-1' AND l.recorded_at <= e.recorded_at ORDER BY version DESC LIMIT 1))
  FROM es.event e WHERE e.stream = 'tally-1' AND e.version % 997 = 0;
-- A snapshot is what a fold begins with, so that these are wrong where it is.
BEGIN;
UPDATE es.snapshot SET state = '{"n": -1000000, "sum": 0}' WHERE stream = 'tally-1';
SELECT es_state('tally-1')->'n' <> '10000', es_state('tally-1', 50) = state FROM scratch WHERE version = 50;
ROLLBACK;
-- Without snapshots, in this session and in one that knows nothing.
SELECT es_drop_snapshots('tally') >= 99;
SELECT count(*) FROM es.snapshot WHERE stream = 'tally-1';
SELECT count(*) FILTER (WHERE es_state('tally-1', version) = state) FROM scratch WHERE version % 100 = 1;
SELECT es_submit('COUNT', '1', '{"seed": 1, "n": 1}') IS NOT NULL;
SELECT (SELECT e.payload->'seen' FROM es.event e WHERE e.stream = 'tally-1' AND e.version = 10001) =
	   (SELECT state FROM scratch WHERE version = 10000);
\c -
\pset format unaligned
\pset tuples_only on
SELECT es_submit('COUNT', '1', '{"seed": 1, "n": 1}') IS NOT NULL;
SELECT (SELECT e.payload->'seen' FROM es.event e WHERE e.stream = 'tally-1' AND e.version = 10002) =
	   es_state('tally-1', 10001);

--
-- Another evolve function, another state: snapshots and caches of the old one
-- are not used.
--
SELECT count(*) > 0 FROM es.snapshot WHERE stream = 'tally-1';
CREATE OR REPLACE FUNCTION tally_evolve(state jsonb, event es.event) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$ SELECT jsonb_build_object('n', (state->>'n')::bigint + 2) $$;
SELECT es_state('tally-1', 10000);
SELECT es_submit('COUNT', '1', '{"seed": 1, "n": 1}') IS NOT NULL;
SELECT payload->'seen' FROM es.event WHERE stream = 'tally-1' AND version = 10003;
-- As is an aggregate that begins elsewhere.
SELECT es_drop_aggregate('tally');
SELECT count(*) FROM es.snapshot WHERE stream = 'tally-1';
SELECT es_create_aggregate('tally', 'tally_evolve(jsonb, es.event)', '{"n": 1}');
SELECT es_state('tally-1', 10000);
-- What makes it another function: a body in SQL's own form, too, and settings; not
-- what does not change the result.  A snapshot that is used can be told, by what is
-- wrong with it.
CREATE FUNCTION kept_step() RETURNS integer LANGUAGE sql IMMUTABLE RETURN 1;
CREATE FUNCTION kept_evolve(state jsonb, event es.event) RETURNS jsonb
	LANGUAGE sql IMMUTABLE RETURN jsonb_build_object('n', (state->>'n')::integer + kept_step());
SELECT es_create_aggregate('kept', 'kept_evolve(jsonb, es.event)', '{"n": 0}', 5);
SELECT es_create_command('KEEP', 'kept', decide => 'tally_decide(jsonb, es.command)');
SELECT sum(events) FROM generate_series(1, 12) i, es_submit('KEEP', '1', jsonb_build_object('seed', i, 'n', 1));
UPDATE es.snapshot SET state = '{"n": 1000}' WHERE stream = 'kept-1';
SELECT es_state('kept-1') AS used;
ALTER FUNCTION kept_evolve COST 1000;
SELECT es_state('kept-1') AS used;
ALTER FUNCTION kept_evolve SET extra_float_digits = 0;
SELECT es_state('kept-1') AS unused;
ALTER FUNCTION kept_evolve RESET extra_float_digits;
SELECT es_state('kept-1') AS used;
-- A function that it calls is not looked at, until the snapshots are dropped.  What
-- a session has kept to decide on is forgotten at once.
CREATE OR REPLACE FUNCTION kept_step() RETURNS integer LANGUAGE sql IMMUTABLE RETURN 3;
SELECT es_state('kept-1') AS used;
SELECT es_drop_snapshots('kept');
SELECT es_state('kept-1') AS unused;
SELECT events FROM es_submit('KEEP', '1', '{"seed": 1, "n": 10}');
SELECT payload->'seen' FROM es.event WHERE stream = 'kept-1' AND version = 13;
UPDATE es.snapshot SET state = '{"n": 1000}' WHERE stream = 'kept-1';
SELECT es_state('kept-1') AS used;
CREATE OR REPLACE FUNCTION kept_evolve(state jsonb, event es.event) RETURNS jsonb
	LANGUAGE sql IMMUTABLE RETURN jsonb_build_object('n', (state->>'n')::integer + 2);
SELECT es_state('kept-1') AS unused;
SELECT events FROM es_submit('KEEP', '1', '{"seed": 2, "n": 1}');
SELECT payload->'seen' FROM es.event WHERE stream = 'kept-1' AND version = 23;
-- Whoever may change the log itself changes the states with it.
SELECT es_submit('COUNT', '2', '{"seed": 1, "n": 250}') IS NOT NULL;
SELECT count(*) FROM es.snapshot WHERE stream = 'tally-2';
CREATE OR REPLACE FUNCTION tally_evolve(state jsonb, event es.event) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$ SELECT jsonb_build_object('x', event.payload->'x') $$;
SELECT es_submit('COUNT', '2', '{"seed": 1, "n": 1}') IS NOT NULL;
SET es.allow_destructive = on;
UPDATE es.event SET payload = '{"x": "changed"}' WHERE stream = 'tally-2' AND version = 251;
RESET es.allow_destructive;
SELECT count(*) FROM es.snapshot;
SELECT es_state('tally-2');
SELECT es_submit('COUNT', '2', '{"seed": 1, "n": 1}') IS NOT NULL;
SELECT payload->'seen' FROM es.event WHERE stream = 'tally-2' AND version = 252;

--
-- What functions must not do
--
CREATE FUNCTION bad_evolve(state jsonb, event es.event) RETURNS jsonb
LANGUAGE plpgsql AS $$
BEGIN
	CASE event.type
		WHEN 'NOTHING' THEN RETURN NULL;
		WHEN 'SUBMIT' THEN PERFORM es_submit('BAD', 'x');
		WHEN 'APPEND' THEN PERFORM es_append('bad-y', 'X');
		WHEN 'STATE' THEN PERFORM es_state('bad-z');
		WHEN 'RAISE' THEN RAISE EXCEPTION 'cannot fold this';
		ELSE RETURN state;
	END CASE;
	RETURN state;
END
$$;
CREATE FUNCTION bad_decide(state jsonb, command es.command) RETURNS SETOF es.new_event
LANGUAGE plpgsql AS $$
BEGIN
	CASE command.payload->>'how'
		WHEN 'submit' THEN PERFORM es_submit('BAD', 'x');
		WHEN 'append' THEN PERFORM es_append('bad-y', 'X');
		WHEN 'batch' THEN PERFORM es_append_batch('bad-y', '[{"type": "X"}]');
		WHEN 'append if' THEN PERFORM es_append_if('[{"type": "X", "stream": "bad-y"}]', NULL);
		WHEN 'null' THEN RETURN NEXT NULL::es.new_event;
		ELSE NULL;
	END CASE;
	RETURN NEXT jsonb_populate_record(NULL::es.new_event, command.payload->'event');
END
$$;
SELECT es_create_aggregate('bad', 'bad_evolve(jsonb, es.event)');
SELECT es_create_command('BAD', 'bad', decide => 'bad_decide(jsonb, es.command)');
CREATE FUNCTION aggregates_bad(how text, event text) RETURNS text LANGUAGE sql AS $$
	SELECT regexp_replace(aggregates_try(format('SELECT version FROM es_submit(%L, %L, %L)', 'BAD', '1',
		jsonb_build_object('how', how, 'event', event::jsonb))), 'position \d+', 'position N')
$$;
SELECT aggregates_bad(how, '{"type": "FINE"}')
  FROM unnest(ARRAY['submit', 'append', 'batch', 'append if', 'null']) how;
SELECT aggregates_bad('', event) FROM unnest(ARRAY[
	'{}', '{"type": ""}', '{"type": "T", "payload": []}', '{"type": "T", "payload": 1}',
	'{"type": "T", "metadata": "x"}', '{"type": "T", "tags": ["a", null]}',
	'{"type": "T", "tags": [""]}', '{"type": "T", "stream": ""}', '{"type": "T", "stream": "-1"}']) event;
-- An event that cannot be folded is refused with the command that led to it.
SELECT aggregates_bad('', format('{"type": "%s"}', type))
  FROM unnest(ARRAY['NOTHING', 'SUBMIT', 'APPEND', 'STATE', 'RAISE']) type;
SELECT count(*) FROM es.event WHERE category = 'bad';
-- One that es_append() wrote is named when it is met, by function and position.
SELECT version FROM es_append('bad-1', 'NOTHING');
SELECT aggregates_bad('', '{"type": "FINE"}');
SELECT regexp_replace(aggregates_try($$SELECT es_state('bad-1')$$), 'position \d+', 'position N');
-- After all these errors the session goes on as if nothing had been.
SELECT version FROM es_append('bad-2', 'FINE');
SELECT version FROM es_submit('BAD', '2', '{"event": {"type": "FINE"}}');

--
-- Definitions
--
CREATE FUNCTION wrong_evolve(state jsonb, event es.event) RETURNS SETOF jsonb LANGUAGE sql AS 'SELECT state';
CREATE FUNCTION wrong_decide(state jsonb, command es.command) RETURNS es.new_event
	LANGUAGE sql AS 'SELECT NULL::es.new_event';
SELECT aggregates_try($$SELECT es_create_aggregate('a', 'wrong_evolve(jsonb, es.event)')$$);
SELECT aggregates_try($$SELECT es_create_aggregate('a', 'account_withdraw(jsonb, es.command)')$$);
SELECT aggregates_try($$SELECT es_create_aggregate('a', NULL)$$);
SELECT aggregates_try($$SELECT es_create_aggregate('a-b', 'account_evolve(jsonb, es.event)')$$);
SELECT aggregates_try($$SELECT es_create_aggregate(NULL, 'account_evolve(jsonb, es.event)')$$);
SELECT aggregates_try($$SELECT es_create_aggregate('a', 'account_evolve(jsonb, es.event)', NULL)$$);
SELECT aggregates_try($$SELECT es_create_aggregate('a', 'account_evolve(jsonb, es.event)', snapshot_every => -1)$$);
SELECT aggregates_try($$SELECT es_create_aggregate('account', 'account_evolve(jsonb, es.event)')$$);
SELECT aggregates_try($$SELECT es_create_command('C', 'a', decide => 'wrong_decide(jsonb, es.command)')$$);
SELECT aggregates_try($$SELECT es_create_command('C', 'a', 'E', decide => 'bad_decide(jsonb, es.command)')$$);
SELECT aggregates_try($$SELECT es_drop_aggregate('none')$$);
SELECT aggregates_try($$SELECT es_drop_snapshots('none')$$);
SELECT category, evolve, initial_state, snapshot_every, commands, snapshots > 0, search_path
  FROM es_aggregates ORDER BY category;
SELECT name, category, event_type, decide FROM es_commands WHERE category IN ('account', 'tally') ORDER BY name;

--
-- A rule is not undermined by the search_path of who submits
--
CREATE TABLE closed (id text);
CREATE FUNCTION door_decide(state jsonb, command es.command) RETURNS SETOF es.new_event
LANGUAGE plpgsql AS $$
BEGIN
	IF EXISTS (SELECT FROM closed WHERE id = command.id) THEN
		RAISE EXCEPTION 'closed';
	END IF;
	RETURN NEXT ROW('ENTERED', NULL, NULL, NULL, NULL)::es.new_event;
END
$$;
SELECT es_create_command('ENTER', 'door', decide => 'door_decide(jsonb, es.command)');
INSERT INTO closed VALUES ('1');
SELECT aggregates_try($$SELECT version FROM es_submit('ENTER', '1')$$);
CREATE TEMP TABLE closed (id text);
SELECT aggregates_try($$SELECT version FROM es_submit('ENTER', '1')$$);
SELECT version FROM es_submit('ENTER', '2');

--
-- Rights
--
CREATE ROLE regress_es_teller;
SELECT es_grant('regress_es_teller', 'writer');
SET ROLE regress_es_teller;
SELECT version FROM es_submit('OPEN', 'cid', '{"owner": "Cid"}');
SELECT aggregates_try($$SELECT es_state('account-cid')$$);
SELECT aggregates_try($$SELECT es_create_aggregate('a', 'account_evolve(jsonb, es.event)')$$);
RESET ROLE;
SELECT es_grant('regress_es_teller', 'reader');
GRANT EXECUTE ON FUNCTION es_drop_aggregate, es_drop_snapshots TO regress_es_teller;
SET ROLE regress_es_teller;
SELECT es_state('account-cid');
SELECT aggregates_try($$SELECT es_drop_aggregate('account')$$);
SELECT aggregates_try($$SELECT es_drop_snapshots('account')$$);
RESET ROLE;
-- Row security would make a state of only some of the events.
ALTER TABLE es.event ENABLE ROW LEVEL SECURITY;
SET ROLE regress_es_teller;
SELECT aggregates_try($$SELECT es_state('account-cid')$$);
RESET ROLE;
SET es.allow_destructive = on;
ALTER TABLE es.event DISABLE ROW LEVEL SECURITY;
-- Who may not call evolve may not decide by it.
REVOKE EXECUTE ON FUNCTION account_evolve FROM PUBLIC;
SET ROLE regress_es_teller;
SELECT aggregates_try($$SELECT version FROM es_submit('DEPOSIT', 'cid', '{"parts": [1]}')$$);
RESET ROLE;

SELECT count(es_drop_aggregate(category)::text) FROM es_aggregates;
SELECT count(es_drop_command(name)::text) FROM es_commands
 WHERE category IN ('account', 'tally', 'kept', 'bad', 'door');
DROP FUNCTION account_evolve, account_withdraw, account_deposit, tally_evolve, tally_decide,
	kept_evolve, kept_step,
	bad_evolve, bad_decide, wrong_evolve, wrong_decide, door_decide,
	aggregates_try, aggregates_bad;
DROP TABLE pg_temp.closed, public.closed;
DROP OWNED BY regress_es_teller;
DROP ROLE regress_es_teller;
DELETE FROM es.tag WHERE "position" IN (SELECT "position" FROM es.event
	WHERE category IN ('account', 'tally', 'kept', 'bad', 'door'));
DELETE FROM es.event WHERE category IN ('account', 'tally', 'kept', 'bad', 'door');
DELETE FROM es.command_log WHERE command = 'WITHDRAW';
