-- Channels: the interface, and what is refused.
\set VERBOSITY terse
SELECT es_create_channel('fchan', ARRAY['fchan']);
SELECT es_create_channel('fchan');
SELECT es_create_channel('es');
SELECT es_create_channel('');
SELECT es_create_channel(NULL);
SELECT es_create_channel(repeat('x', 64));
SELECT es_create_channel('fchan2', ARRAY[]::text[]);
SELECT es_create_channel('fchan2', types => ARRAY[NULL]::text[]);
SELECT es_create_channel('fchan2', types => ARRAY[repeat('x', 513)]);
-- A name that LISTEN has to quote, of the greatest length.
SELECT es_create_channel('Ünï "quoted" ' || repeat('x', 47), types => ARRAY['HAPPENED']);
SELECT name, owner = current_user AS own, categories, types, notifications, events FROM es_channels
 WHERE name LIKE '%chan' OR name LIKE 'Ü%' ORDER BY name;

-- They are counted as they are told.
SELECT es_append('fchan-1', 'HAPPENED'), es_append('fchan-1', 'ELSE'), es_append('fother-1', 'HAPPENED') \g /dev/null
DO $$
BEGIN
	FOR i IN 1 .. 1000 LOOP
		EXIT WHEN (SELECT bool_and(events = 2) FROM es_channels WHERE name LIKE '%chan' OR name LIKE 'Ü%');
		PERFORM pg_sleep(0.01);
		COMMIT;
	END LOOP;
END
$$;
SELECT name, notifications, events FROM es_channels WHERE name LIKE '%chan' OR name LIKE 'Ü%' ORDER BY name;
SELECT es.notify_failures(), count(*) FROM es_channels WHERE failures > 0;

-- Rights
CREATE ROLE fchan_other;
GRANT USAGE ON SCHEMA es TO fchan_other;
GRANT EXECUTE ON FUNCTION es_create_channel, es_drop_channel TO fchan_other;
SET ROLE fchan_other;
SELECT es_drop_channel('fchan');
SELECT es_create_channel('its own');
SELECT es_drop_channel('its own');
RESET ROLE;
SELECT es_drop_channel('fchan');
SELECT es_drop_channel('fchan');
SELECT es_drop_channel('es');
SELECT es_drop_channel('Ünï "quoted" ' || repeat('x', 47));
DROP OWNED BY fchan_other;
DROP ROLE fchan_other;
