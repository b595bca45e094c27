\set s random(1, :streams)
SELECT * FROM es_stream('account-' || :s);
