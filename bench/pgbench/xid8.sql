\set s random(1, :streams)
SELECT xid_append('account-' || :s, 'Deposited', :payload);
