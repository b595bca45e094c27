\set after random(0, :last - 1000)
SELECT * FROM es_read(:after, 1000);
