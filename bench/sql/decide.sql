--
-- An account that cannot be overdrawn: the aggregate and its decider, and what
-- an application that decides itself appends with.
--
CREATE FUNCTION evolve(state jsonb, event es.event) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
	RETURN jsonb_build_object('balance', (state->>'balance')::bigint +
		CASE event.type WHEN 'Deposited' THEN 1 ELSE -1 END * (event.payload->>'amount')::bigint);
END $$;
CREATE FUNCTION decide(state jsonb, command es.command) RETURNS SETOF es.new_event
	LANGUAGE plpgsql AS $$
BEGIN
	IF (state->>'balance')::bigint < (command.payload->>'amount')::bigint THEN
		RAISE EXCEPTION 'not enough money';
	END IF;
	RETURN NEXT ROW('Withdrawn', command.payload, NULL, NULL, NULL)::es.new_event;
END $$;
SELECT es_create_aggregate('account', 'evolve(jsonb, es.event)', '{"balance": 0}');
SELECT es_create_command('WITHDRAW', 'account', decide => 'decide(jsonb, es.command)');
SELECT es_append('account-1', 'Deposited', '{"amount": 1000000000}');

-- pgbench begins a transaction again after 40001 alone.
CREATE FUNCTION append_or_retry(version bigint, payload jsonb) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	RETURN (es_append('account-1', 'Withdrawn', payload, version)).version;
EXCEPTION WHEN SQLSTATE 'ES001' THEN
	RAISE serialization_failure;
END $$;
