\set n :n + 1
\set version :base + (:n * 64 + :client_id) * 100
\set s random(1, :streams)
INSERT INTO raw (version, stream, category, type, payload) SELECT :version::bigint + n, 'account-' || :s, 'account', type, payload FROM unnest(:types::text[], :payloads::jsonb[]) WITH ORDINALITY e(type, payload, n);
