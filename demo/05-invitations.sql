--
-- 5. Invitations
--
-- Whoever has bought for 150 is invited, once.  That takes a decision, so this
-- command has a decider: it is given the state of the customer's campaign, folded
-- from the events so far, and returns the events to append, or none.
CREATE FUNCTION campaign_after(state jsonb, event es.event) RETURNS jsonb
LANGUAGE sql IMMUTABLE
RETURN state || jsonb_build_object('invited', event.type = 'CUSTOMER_INVITED');

CREATE FUNCTION invite_once(state jsonb, command es.command) RETURNS SETOF es.new_event
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT 'CUSTOMER_INVITED', command.payload, NULL::jsonb, NULL::text[], NULL::text
     WHERE NOT (state->>'invited')::boolean;
END;

SELECT es_create_aggregate('campaign', 'campaign_after(jsonb, es.event)', initial_state => '{"invited": false}'),
       es_create_command('INVITE_CUSTOMER', 'campaign', decide => 'invite_once(jsonb, es.command)');

-- A projection that submits commands is a saga.  Its table, its checkpoint and the
-- events of its commands are one transaction.
CREATE TABLE campaign (customer text PRIMARY KEY, turnover numeric NOT NULL);
SELECT es_create_projection('campaign', $$
    WITH changed AS (
        INSERT INTO campaign
        SELECT payload->>'customer', sum((payload->>'quantity')::integer * (payload->>'price')::numeric)
          FROM es_batch GROUP BY 1
        ON CONFLICT (customer) DO UPDATE SET turnover = campaign.turnover + excluded.turnover
        RETURNING *)
    SELECT es_submit('INVITE_CUSTOMER', customer, jsonb_build_object('turnover', turnover))
      FROM changed WHERE turnover >= 150 ORDER BY customer
$$, types => '{ORDER_CREATED}');
SELECT es_wait('campaign', es_settled());
SELECT "position", stream, type, payload FROM es_read(category => 'campaign');

-- The mails themselves are sent by a program outside the database.  A subscription
-- keeps its place in the log: what it does not acknowledge is handed out again.
SELECT es_create_subscription('mailer', types => '{CUSTOMER_INVITED}');
SELECT "position", stream, deliveries FROM es_fetch('mailer', 'mail-program-1');
SELECT es_ack('mailer', 'mail-program-1', 11);

-- Ada buys once more and is not invited again; Robert now is.
SELECT * FROM es_submit('CREATE_ORDER', '1005',
    '{"customer": "ada", "product": "cup", "quantity": 2, "price": 4.50}');
SELECT * FROM es_submit('CREATE_ORDER', '1006',
    '{"customer": "bob", "product": "samovar", "quantity": 1, "price": 240.00}') \gset
SELECT es_wait('campaign', :position);
SELECT "position", stream, deliveries FROM es_fetch('mailer', 'mail-program-1', wait => '5 s');
SELECT es_state('campaign-ada'), es_state('campaign-cy'), es_state('campaign-zoe');
