--
-- 2. Commands that are rejected
--
-- Each of these is an error, with a reason and a hint, and appends nothing.
\set ON_ERROR_STOP off

-- An order of an unknown customer: the validator says no.
SELECT * FROM es_submit('CREATE_ORDER', '1004',
    '{"customer": "zoe", "product": "tea", "quantity": 1, "price": 12.00}');
\echo SQLSTATE :SQLSTATE

-- An order of nothing: the domain "quantity" says no.
SELECT * FROM es_submit('CREATE_ORDER', '1004',
    '{"customer": "cy", "product": "tea", "quantity": 0, "price": 12.00}');

-- A key that nobody knows: the type says no.
SELECT * FROM es_submit('CREATE_ORDER', '1004',
    '{"customer": "cy", "product": "tea", "quantity": 1, "price": 12.00, "colour": "green"}');

-- A customer who exists, and one who does not.
SELECT * FROM es_submit('CREATE_CUSTOMER', 'ada', '{"name": "Another Ada"}');
SELECT * FROM es_submit('RENAME_CUSTOMER', 'zoe', '{"name": "Zoe"}');

-- A decision on old data: somebody has read version 1, but the customer moves on.
SELECT * FROM es_submit('RENAME_CUSTOMER', 'ada', '{"name": "Ada L."}', expected_version => 1);
SELECT * FROM es_submit('RENAME_CUSTOMER', 'ada', '{"name": "A. L."}', expected_version => 1);
\echo SQLSTATE :SQLSTATE

-- And nobody rewrites what has happened, not even a superuser by mistake.
DELETE FROM es.event WHERE stream = 'customer-ada';
\set ON_ERROR_STOP on
