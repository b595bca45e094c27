\set s random(1, :streams)
SELECT es_state('account-' || :s);
