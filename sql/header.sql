\echo Use "CREATE EXTENSION es" to load this file. \quit

-- Everything a user calls is es_something in the schema that CREATE EXTENSION
-- chose; tables, types and what only the extension itself calls are in "es".

CREATE SCHEMA es;
COMMENT ON SCHEMA es IS
	'Tables and types of the extension es; call the es_* functions rather than write here.';

-- Nothing here is for PUBLIC: es_grant() hands out rights by role.
REVOKE ALL ON SCHEMA es FROM PUBLIC;
