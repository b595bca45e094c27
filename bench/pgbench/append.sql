\set s random(1, :streams)
SELECT es_append('account-' || :s, 'Deposited', :payload);
