\set n :n + 1
\set version :base + :n * 64 + :client_id
\set s random(1, :streams)
WITH l AS MATERIALIZED (SELECT pg_advisory_xact_lock(1)) INSERT INTO raw (version, stream, category, type, payload) SELECT :version, 'account-' || :s, 'account', 'Deposited', :payload FROM l;
