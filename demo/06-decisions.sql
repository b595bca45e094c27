--
-- 6. Commands that decide
--
-- Some commands depend on what has happened before.  An aggregate says how the
-- events of a stream become its state: state and event in, next state out.
CREATE FUNCTION stock_evolve(state jsonb, event es.event) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE event.type
        WHEN 'GOODS_RECEIVED' THEN jsonb_build_object('free', (state->>'free')::integer + (event.payload->>'quantity')::integer)
        WHEN 'GOODS_RESERVED' THEN jsonb_build_object('free', (state->>'free')::integer - (event.payload->>'quantity')::integer)
        ELSE state END
$$;
SELECT es_create_aggregate('stock', 'stock_evolve(jsonb, es.event)', '{"free": 0}');

-- A decider gets the state and the command, and returns events: none, one or
-- several, also of other streams.  Or it raises, and the command is rejected.
CREATE FUNCTION stock_reserve(state jsonb, command es.command) RETURNS SETOF es.new_event
LANGUAGE plpgsql AS $$
DECLARE
    free integer := state->>'free';
    quantity integer := command.payload->>'quantity';
BEGIN
    IF quantity > free THEN
        RAISE 'only % of % left', free, command.id;
    END IF;
    RETURN NEXT ROW('GOODS_RESERVED', command.payload, NULL, NULL, NULL)::es.new_event;
    IF quantity = free THEN
        RETURN NEXT ROW('SUPPLY_ORDERED', '{"quantity": 10}', NULL, NULL, 'supply-' || command.id)::es.new_event;
    END IF;
END $$;
SELECT es_create_command('RECEIVE', 'stock', 'GOODS_RECEIVED'),
       es_create_command('RESERVE', 'stock', decide => 'stock_reserve(jsonb, es.command)');

-- Two customers want the last samovars.  Whoever comes second waits until the
-- first has committed, and is then decided on fresh state: no retries.
SELECT stream, version, events FROM es_submit('RECEIVE', 'samovar', '{"quantity": 3}');
SELECT stream, version, events FROM es_submit('RESERVE', 'samovar', '{"quantity": 1}');
SELECT stream, version, events FROM es_submit('RESERVE', 'samovar', '{"quantity": 2}');
\set ON_ERROR_STOP off
SELECT stream, version, events FROM es_submit('RESERVE', 'samovar', '{"quantity": 1}');
\set ON_ERROR_STOP on
SELECT stream, version, type, payload FROM es.event
 WHERE category IN ('stock', 'supply') ORDER BY "position";

-- The state now, and at any version or time before.
SELECT es_state('stock-samovar') AS now, es_state('stock-samovar', at_version => 1) AS at_version_1,
       es_state('stock-samovar', at_time => '2020-05-03') AS on_3_may_2020;

-- Rules across streams: a name may be taken once, whichever customer takes it.
-- Events carry tags, and es_append_if() appends if nothing that matches a query
-- stands behind the position that was read to.
SELECT events_appended FROM es_append_if(
    '[{"stream": "customer-ada", "type": "NAME_TAKEN", "payload": {"name": "tea"}, "tags": ["name:tea"]}]',
    '{"items": [{"types": ["NAME_TAKEN"], "tags": ["name:tea"]}]}');
\set ON_ERROR_STOP off
SELECT events_appended FROM es_append_if(
    '[{"stream": "customer-bob", "type": "NAME_TAKEN", "payload": {"name": "tea"}, "tags": ["name:tea"]}]',
    '{"items": [{"types": ["NAME_TAKEN"], "tags": ["name:tea"]}]}');
\set ON_ERROR_STOP on

-- A command can be submitted later, exactly once: also after a restart.
SELECT es_schedule('RECEIVE', 'samovar', '{"quantity": 10}', now() + interval '1 day',
    command_id => '11111111-2222-4333-8444-555555555555');
SELECT command, aggregate_id, status, attempts, payload FROM es_schedules;
SELECT es_cancel('11111111-2222-4333-8444-555555555555');
