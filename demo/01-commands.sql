--
-- 1. Commands become events
--
-- A web shop keeps its data as events.  The extension is all it needs.
CREATE EXTENSION es;

-- What a command carries is said in PostgreSQL's own types and domains.
CREATE DOMAIN required AS text NOT NULL CHECK (VALUE <> '');
CREATE DOMAIN quantity AS integer NOT NULL CHECK (VALUE > 0);
CREATE DOMAIN price AS numeric(10,2) NOT NULL CHECK (VALUE >= 0);
CREATE TYPE new_customer AS (name required, email text);
CREATE TYPE new_name AS (name required);
CREATE TYPE new_order AS (customer required, product required, quantity quantity, price price);

-- What types cannot say is said by a validator: a function that raises.
CREATE FUNCTION order_has_customer(state jsonb, command es.command) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM es_stream('customer-' || (command.payload->>'customer'), max_count => 1)) THEN
        RAISE 'there is no customer "%"', command.payload->>'customer';
    END IF;
END $$;

-- A command has a name, a category of things it is about, and the event that
-- it becomes.  creates => true: the thing must not exist; false: it must.
SELECT es_create_command('CREATE_CUSTOMER', 'customer', 'CUSTOMER_CREATED',
           creates => true, payload_type => 'new_customer'),
       es_create_command('RENAME_CUSTOMER', 'customer', 'CUSTOMER_RENAMED',
           creates => false, payload_type => 'new_name'),
       es_create_command('CREATE_ORDER', 'order', 'ORDER_CREATED',
           creates => true, payload_type => 'new_order',
           validate => 'order_has_customer(jsonb, es.command)');

-- Customers come ...
SELECT * FROM es_submit('CREATE_CUSTOMER', 'ada', '{"name": "Ada", "email": "ada@example.org"}');
SELECT * FROM es_submit('CREATE_CUSTOMER', 'bob', '{"name": "Bob"}');
SELECT * FROM es_submit('CREATE_CUSTOMER', 'cy', '{"name": "Cy", "email": "cy@example.org"}');

-- ... and buy.  A command_id makes a command safe to send again: the second
-- time appends nothing and returns the result of the first.
SELECT * FROM es_submit('CREATE_ORDER', '1001',
    '{"customer": "ada", "product": "teapot", "quantity": 1, "price": 39.90}',
    command_id => '6c1f1c3e-8f0b-4c39-9f58-0a4f8d2b7a01');
SELECT * FROM es_submit('CREATE_ORDER', '1001',
    '{"customer": "ada", "product": "teapot", "quantity": 1, "price": 39.90}',
    command_id => '6c1f1c3e-8f0b-4c39-9f58-0a4f8d2b7a01');
SELECT * FROM es_submit('CREATE_ORDER', '1002',
    '{"customer": "bob", "product": "cup", "quantity": 6, "price": 4.50}');
SELECT * FROM es_submit('CREATE_ORDER', '1003',
    '{"customer": "ada", "product": "tea", "quantity": 10, "price": 12.00}');

-- The log holds what has happened, and nothing else does.
SELECT "position", stream, version, type, payload FROM es_read();
