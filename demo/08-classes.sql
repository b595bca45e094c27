--
-- 8. A saga: customers, their class, and an e-mail campaign
--
\c sagas
-- Orders change what a customer is to the shop.  The class is an event of the
-- customer, and it is a saga that submits the command for it.
CREATE TYPE classification AS (class text);
CREATE FUNCTION customer_evolve(state jsonb, event es.event) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE event.type WHEN 'CUSTOMER_CLASSIFIED' THEN state || event.payload ELSE state END
$$;
SELECT es_create_aggregate('customer', 'customer_evolve(jsonb, es.event)', '{"class": "C"}');
-- To say what is known already is no event: a decider may return none.
CREATE FUNCTION customer_classify(state jsonb, command es.command) RETURNS SETOF es.new_event
LANGUAGE sql AS $$
    SELECT 'CUSTOMER_CLASSIFIED', command.payload, NULL::jsonb, NULL::text[], NULL::text
     WHERE state->'class' <> command.payload->'class'
$$;
SELECT es_create_command('UPDATE_CUSTOMER_CLASSIFICATION', 'customer',
           decide => 'customer_classify(jsonb, es.command)', payload_type => 'classification');

CREATE TABLE turnover (customer text PRIMARY KEY, euros numeric NOT NULL);
SELECT es_create_projection('classify_customers', $$
    INSERT INTO turnover
    SELECT payload->>'customer', sum((payload->>'amount')::numeric) FROM es_batch
     WHERE payload->>'currency' = 'EUR' GROUP BY 1
    ON CONFLICT (customer) DO UPDATE SET euros = turnover.euros + excluded.euros;

    SELECT es_submit('UPDATE_CUSTOMER_CLASSIFICATION', t.customer, jsonb_build_object('class',
               CASE WHEN t.euros >= 1000 THEN 'A' WHEN t.euros >= 100 THEN 'B' ELSE 'C' END))
      FROM turnover t
     WHERE t.customer IN (SELECT payload->>'customer' FROM es_batch)
     ORDER BY t.customer;
$$, types => '{ORDER_CREATED}');

-- The campaign knows the classes from a read model of its own ...
CREATE TABLE campaign_customer (customer text PRIMARY KEY, class text NOT NULL);
SELECT es_create_projection('campaign_customers', $$
    INSERT INTO campaign_customer
    SELECT DISTINCT ON (stream) split_part(stream, '-', 2), payload->>'class'
      FROM es_batch ORDER BY stream, version DESC
    ON CONFLICT (customer) DO UPDATE SET class = excluded.class
$$, types => '{CUSTOMER_CLASSIFIED}');

-- ... and picks from it those whom it writes to: one event for each.
CREATE FUNCTION campaign_run(state jsonb, command es.command) RETURNS SETOF es.new_event
LANGUAGE sql AS $$
    SELECT 'EMAIL_SENT', jsonb_build_object('customer', c.customer, 'text', command.payload->>'text'),
           NULL::jsonb, NULL::text[], NULL::text
      FROM campaign_customer c WHERE c.class = command.payload->>'class' ORDER BY c.customer
$$;
SELECT es_create_command('RUN_EMAIL_CAMPAIGN', 'campaign', creates => true,
           decide => 'campaign_run(jsonb, es.command)');

-- Customers buy, some often.
SELECT max("position") AS "position" FROM (VALUES
    ('10', 'ada', 900), ('11', 'bob', 90), ('12', 'cy', 60), ('13', 'cy', 80),
    ('14', 'ada', 700), ('15', 'dan', 150)) o (id, customer, amount),
    es_submit('CREATE_ORDER', o.id, jsonb_build_object('customer', o.customer, 'amount', o.amount, 'currency', 'EUR')) \gset

-- One saga after the other: wait for the first, then for what it led to.
SELECT es_wait('classify_customers', :position);
SELECT es_wait('campaign_customers', (SELECT max("position") FROM es.event));
SELECT * FROM campaign_customer ORDER BY customer;

SELECT stream, version, events FROM es_submit('RUN_EMAIL_CAMPAIGN', 'spring', '{"class": "B", "text": "Tea for you"}');
SELECT stream, version, type, payload FROM es_stream('campaign-spring');
