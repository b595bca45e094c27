--
-- 7. A saga: orders in foreign currencies
--
-- A saga is a projection that submits commands.  Its events, the rows it writes
-- and the position it has reached are one transaction, so each event leads to
-- its commands once.  (This story and the next have a database of their own.)
CREATE DATABASE sagas;
\c sagas
CREATE EXTENSION es;

CREATE TYPE new_order AS (customer text, amount numeric, currency text);
CREATE TYPE rate_answer AS (currency text, rate numeric);
SELECT es_create_command('CREATE_ORDER', 'order', 'ORDER_CREATED',
           creates => true, payload_type => 'new_order'),
       es_create_command('QUOTE_RATE', 'order', 'RATE_QUOTED',
           creates => false, payload_type => 'rate_answer');

-- The orders as the shop's clerks see them: in euros, once the rate is known.
CREATE TABLE order_list (
    id text PRIMARY KEY, customer text, amount numeric, currency text, rate numeric,
    euros numeric(12,2) GENERATED ALWAYS AS (amount / rate) STORED);
SELECT es_create_projection('orders', $$
    INSERT INTO order_list (id, customer, amount, currency, rate)
    SELECT split_part(e.stream, '-', 2), o.*, CASE o.currency WHEN 'EUR' THEN 1 END
      FROM es_batch e, jsonb_populate_record(NULL::new_order, e.payload) o
     WHERE e.type = 'ORDER_CREATED';
    UPDATE order_list l SET rate = (e.payload->>'rate')::numeric
      FROM es_batch e WHERE e.type = 'RATE_QUOTED' AND e.stream = 'order-' || l.id;
$$, categories => '{order}');

-- The saga asks for a rate where one is needed.  Nobody calls the world from
-- inside the database: a question is a row, and whoever can answer it does.
CREATE TABLE rate_wanted (
    order_id text PRIMARY KEY, currency text NOT NULL, asked_at timestamptz NOT NULL DEFAULT now());
SELECT es_create_projection('ask_for_rates', $$
    INSERT INTO rate_wanted (order_id, currency)
    SELECT split_part(stream, '-', 2), payload->>'currency' FROM es_batch
     WHERE type = 'ORDER_CREATED' AND payload->>'currency' <> 'EUR';
    DELETE FROM rate_wanted w USING es_batch e
     WHERE e.type = 'RATE_QUOTED' AND e.stream = 'order-' || w.order_id;
$$, categories => '{order}');

SELECT version FROM es_submit('CREATE_ORDER', '1', '{"customer": "ada", "amount": 40, "currency": "EUR"}');
SELECT "position" FROM es_submit('CREATE_ORDER', '2', '{"customer": "bob", "amount": 108, "currency": "USD"}') \gset
SELECT es_wait('orders', :position), es_wait('ask_for_rates', :position);
SELECT * FROM order_list ORDER BY id;
SELECT order_id, currency FROM rate_wanted;

-- The outside program reads the questions and answers each with a command.  It
-- derives the command_id from the question, so that it may be killed between
-- two steps and begin again: the second answer is the first.
CREATE FUNCTION answer(order_id text, currency text, rate numeric) RETURNS TABLE (duplicate boolean, "position" bigint)
LANGUAGE sql AS $$
    SELECT s.duplicate, s."position"
      FROM es_submit('QUOTE_RATE', order_id, jsonb_build_object('currency', currency, 'rate', rate),
                     command_id => md5('rate for ' || order_id)::uuid) s
$$;
SELECT a.duplicate FROM rate_wanted w, answer(w.order_id, w.currency, 1.08) a;
SELECT a.duplicate, a."position" FROM answer('2', 'USD', 1.08) a \gset
SELECT es_wait('orders', :position), es_wait('ask_for_rates', :position);
SELECT * FROM order_list ORDER BY id;
SELECT count(*) AS open_questions FROM rate_wanted;
