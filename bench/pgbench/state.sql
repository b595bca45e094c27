\set s random(1, :streams)
SELECT es_state(:category || '-' || :s);
