\set s random(1, :streams)
SELECT message_store.write_message(gen_random_uuid()::varchar, 'account-' || :s, 'Deposited', :payload);
