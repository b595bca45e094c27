\set s random(1, :streams)
SELECT state_by_loop(:category || '-' || :s);
