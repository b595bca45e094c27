\set s random(1, :streams)
SELECT * FROM es.event WHERE stream = 'account-' || :s ORDER BY version;
