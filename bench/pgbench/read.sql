\set after random(:first, :last - 1000)
SELECT * FROM es_read(:after, 1000);
