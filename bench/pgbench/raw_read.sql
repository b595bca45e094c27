\set after random(:first, :last - 1000)
SELECT * FROM es.event WHERE position > :after ORDER BY position LIMIT 1000;
