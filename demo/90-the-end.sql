--
-- The end: the read models, and how the projections stand
--
SELECT es_wait(es_settled());
SELECT * FROM customer ORDER BY id;
SELECT id, customer_name, product, quantity, amount FROM order_list ORDER BY id;
SELECT * FROM best_customer ORDER BY turnover DESC;
SELECT name, status, "position", lag_events, events_applied, last_error FROM es_projections ORDER BY name;
