\set s random(1, :streams)
SELECT es_append_batch('account-' || :s, :events);
