\set n :n + 1
\set version :base + :n * 64 + :client_id
\set s random(1, :streams)
WITH i AS (INSERT INTO raw (version, stream, category, type, payload) VALUES (:version, 'account-' || :s, 'account', 'Deposited', :payload) RETURNING stream) SELECT pg_notify('raw', stream) FROM i;
