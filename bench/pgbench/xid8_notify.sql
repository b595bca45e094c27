\set s random(1, :streams)
SELECT xid_append_notify('account-' || :s, 'Deposited', :payload);
