--
-- 3. Read models
--
-- Read models are ordinary tables.  A projection fills them with SQL over
-- es_batch, the events that have come since it ran last; a background worker
-- runs it, and applies each event exactly once, whatever crashes.

-- The customers as they are, and the orders with the customer's name: two
-- tables that one projection keeps, so that they always agree.
CREATE TABLE customer (
    id      text PRIMARY KEY,
    name    text NOT NULL,
    email   text);
CREATE TABLE order_list (
    id              text PRIMARY KEY,
    customer        text NOT NULL,
    customer_name   text NOT NULL,
    product         text NOT NULL,
    quantity        integer NOT NULL,
    amount          numeric NOT NULL);

SELECT es_create_projection('shop', $$
    INSERT INTO customer
    SELECT split_part(stream, '-', 2), payload->>'name', payload->>'email'
      FROM es_batch WHERE type = 'CUSTOMER_CREATED';

    WITH renamed AS (
        SELECT DISTINCT ON (stream) split_part(stream, '-', 2) AS id, payload->>'name' AS name
          FROM es_batch WHERE type = 'CUSTOMER_RENAMED' ORDER BY stream, version DESC),
    old_orders AS (
        UPDATE order_list o SET customer_name = r.name FROM renamed r WHERE o.customer = r.id)
    UPDATE customer c SET name = r.name FROM renamed r WHERE c.id = r.id;

    INSERT INTO order_list
    SELECT split_part(e.stream, '-', 2), c.id, c.name, o.product, o.quantity, o.quantity * o.price
      FROM es_batch e, jsonb_populate_record(NULL::new_order, e.payload) o
      JOIN customer c ON c.id = o.customer
     WHERE e.type = 'ORDER_CREATED';
$$, categories => '{customer,order}');

-- The best customers: a figure for each, kept by adding to it.
CREATE TABLE best_customer (
    customer    text PRIMARY KEY,
    orders      integer NOT NULL,
    turnover    numeric NOT NULL,
    class       text GENERATED ALWAYS AS (
        CASE WHEN turnover >= 150 THEN 'gold' WHEN turnover >= 50 THEN 'silver' ELSE 'new' END) STORED);

SELECT es_create_projection('best_customers', $$
    INSERT INTO best_customer
    SELECT payload->>'customer', count(*), sum((payload->>'quantity')::integer * (payload->>'price')::numeric)
      FROM es_batch GROUP BY 1
    ON CONFLICT (customer) DO UPDATE
       SET orders = best_customer.orders + excluded.orders,
           turnover = best_customer.turnover + excluded.turnover
$$, types => '{ORDER_CREATED}');

-- Both begin with the first event of the log.  es_wait() returns true as soon
-- as a projection has applied a position.
SELECT es_wait('shop', es_settled()), es_wait('best_customers', es_settled());
SELECT * FROM customer ORDER BY id;
SELECT id, customer_name, product, quantity, amount FROM order_list ORDER BY id;
SELECT * FROM best_customer ORDER BY turnover DESC;

-- Read your own write: submit, wait for the position that you were given, read.
SELECT * FROM es_submit('CREATE_ORDER', '1004',
    '{"customer": "cy", "product": "samovar", "quantity": 1, "price": 240.00}') \gset
SELECT es_wait('shop', :position);
SELECT id, customer_name, product, quantity, amount FROM order_list WHERE id = '1004';
