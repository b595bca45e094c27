--
-- 4. News
--
-- Whoever listens on the channel "es" is told how far the log has come, by a
-- NOTIFY that no writer ever waits for.  psql shows it when a command ends.
LISTEN es;
SELECT es_settled() AS before \gset
SELECT * FROM es_submit('RENAME_CUSTOMER', 'bob', '{"name": "Robert"}');
SELECT pg_sleep(1);

-- The news are a hint.  Readers go by the position they have come to, and
-- never miss an event that commits late.
SELECT "position", stream, type, payload FROM es_read(after => :before);
