\set n :n + 1
\set version :base + :n * 64 + :client_id
\set s random(1, :streams)
INSERT INTO triggered (version, stream, category, type, payload) VALUES (:version, 'account-' || :s, 'account', 'Deposited', :payload);
