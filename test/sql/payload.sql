--
-- payload_type: composite types and domains as the schema of a payload.
--

-- What a statement gives, or the error that it raises.
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE statement INTO result;
	RETURN result;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
		hint = PG_EXCEPTION_HINT;
	RETURN format(E'%s: %s\n  detail: %s\n  hint: %s', SQLSTATE, message, detail, hint);
END
$$;
\pset format unaligned
\pset tuples_only on

CREATE DOMAIN payload_amount AS numeric(10,2) CHECK (VALUE >= 0);
CREATE DOMAIN payload_name AS text NOT NULL CHECK (length(VALUE) BETWEEN 1 AND 20);
CREATE TYPE payload_colour AS ENUM ('red', 'green');
CREATE TYPE payload_address AS (street text, zip varchar(5));
CREATE DOMAIN payload_home AS payload_address CHECK ((VALUE).zip IS NOT NULL);
CREATE TYPE payload_line AS (item payload_name, price payload_amount, shipped payload_address);
CREATE TYPE payload_order AS (
	customer	payload_name,
	amount		payload_amount,
	ordered_on	date,
	colour		payload_colour,
	address		payload_home,
	lines		payload_line[],
	tags		text[],
	matrix		integer[],
	extra		jsonb,
	"Odd Name"	boolean
);
SELECT es_create_command('payload_order', 'payload', 'ORDERED', payload_type => 'payload_order');

CREATE FUNCTION pg_temp.order(payload jsonb) RETURNS text LANGUAGE sql AS $$
	SELECT pg_temp.try(format('SELECT version FROM es_submit(%L, %L, %L)',
							  'payload_order', '1', payload))
$$;

-- What fits. A key may be missing or null, if its type takes NULL.
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}}');
SELECT pg_temp.order('{"customer": "ann", "amount": null, "address": {"zip": "1"}}');
SELECT pg_temp.order('{
	"customer": "ann", "amount": 12.5, "ordered_on": "2024-02-29", "colour": "red",
	"address": {"street": "Main St", "zip": "12345"},
	"lines": [{"item": "book", "price": 3}, {"item": "pen", "shipped": {"zip": "9"}}],
	"tags": ["a", null], "matrix": [[1, 2], [3, 4]], "extra": {"any": ["thing", {}]},
	"Odd Name": true}');
-- As jsonb_populate_record() has it, a string is read as the type's own text.
SELECT pg_temp.order('{"customer": "ann", "amount": "7", "address": "(Main St,12345)", "tags": "{a,b}"}');
-- The payload is stored as it came.
SELECT payload FROM es_stream('payload-1') ORDER BY version DESC LIMIT 1;

-- What does not fit: every error names the key.
SELECT pg_temp.order('{"address": {"zip": "1"}}');
SELECT pg_temp.order('{"customer": null, "address": {"zip": "1"}}');
SELECT pg_temp.order('{"customer": "", "address": {"zip": "1"}}');
SELECT pg_temp.order('{"customer": "ann"}');
SELECT pg_temp.order('{"customer": "ann", "amount": -1, "address": {"zip": "1"}}');
SELECT pg_temp.order('{"customer": "ann", "amount": 123456789.5, "address": {"zip": "1"}}');
SELECT pg_temp.order('{"customer": "ann", "amount": "much", "address": {"zip": "1"}}');
SELECT pg_temp.order('{"customer": "ann", "amount": {"value": 1}, "address": {"zip": "1"}}');
SELECT pg_temp.order('{"customer": "ann", "ordered_on": "2023-02-29", "address": {"zip": "1"}}');
SELECT pg_temp.order('{"customer": "ann", "colour": "blue", "address": {"zip": "1"}}');
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "123456"}}');
SELECT pg_temp.order('{"customer": "ann", "address": [1]}');
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "tags": 7}');
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "matrix": [[1], [2, 3]]}');
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "lines": [{"price": 3}]}');
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "lines": [{"item": "book", "price": -3}]}');
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "Odd Name": "maybe"}');
-- Unknown keys, at any depth of composite types.
SELECT pg_temp.order('{"custommer": "ann"}');
SELECT pg_temp.order('{"Customer": "ann"}');
SELECT pg_temp.order('{"": 1}');
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1", "town": "x"}}');
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "lines": [{"item": "book"}, {"item": "pen", "shipped": {"zap": "1"}}]}');
-- A payload that is no object is refused before any type is looked at.
SELECT pg_temp.order('[]');
SELECT pg_temp.order('"text"');
SELECT pg_temp.order('null');
SELECT version FROM es_submit('payload_order', '1', NULL);
SELECT count(*), max(version) FROM es_stream('payload-1');

--
-- Changes of the types between two commands of one session
--

ALTER TYPE payload_order ADD ATTRIBUTE voucher integer;
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "voucher": "x"}');
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "voucher": 7}');
ALTER TYPE payload_order DROP ATTRIBUTE voucher;
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "voucher": 7}');
ALTER TYPE payload_order RENAME ATTRIBUTE amount TO total;
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "amount": 7}');
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "total": 7}');
BEGIN;
ALTER TYPE payload_order ALTER ATTRIBUTE total TYPE text;
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "total": "much"}');
ROLLBACK;
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "total": "much"}');
-- A nested type.
ALTER TYPE payload_address ADD ATTRIBUTE floor integer;
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1", "floor": "x"}}');
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "lines": [{"item": "pen", "shipped": {"floor": 3}}]}');
ALTER TYPE payload_address ALTER ATTRIBUTE floor TYPE text;
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1", "floor": "x"}}');
-- A domain, an enum.
ALTER DOMAIN payload_amount ADD CONSTRAINT payload_limit CHECK (VALUE < 100);
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "total": 100}');
ALTER DOMAIN payload_amount DROP CONSTRAINT payload_limit;
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "total": 100}');
ALTER TYPE payload_colour ADD VALUE 'blue';
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}, "colour": "blue"}');

-- The CHECK of a domain may call a function, also one that fails midway, and
-- one that submits a command with the same type.
CREATE FUNCTION payload_checked(n integer) RETURNS boolean
LANGUAGE sql AS $$
	SELECT 1 / n;
	SELECT true;
$$;
CREATE FUNCTION payload_recursive(n integer) RETURNS boolean
LANGUAGE sql AS $$
	SELECT CASE WHEN n > 0 THEN
		(SELECT events = 1 FROM es_submit('payload_recursive', 'r' || n,
			jsonb_build_object('n', n - 1, 'again', n - 1))) ELSE true END;
$$;
CREATE DOMAIN payload_checked AS integer CHECK (payload_checked(VALUE));
CREATE DOMAIN payload_recursive AS integer CHECK (payload_recursive(VALUE));
CREATE TYPE payload_with_function AS (n payload_checked);
CREATE TYPE payload_with_recursion AS (n payload_recursive, again integer);
SELECT es_create_command('payload_checked', 'payload', 'CHECKED', payload_type => 'payload_with_function');
SELECT es_create_command('payload_recursive', 'payload', 'RECURSED', payload_type => 'payload_with_recursion');
BEGIN;
SELECT pg_temp.try($$SELECT version FROM es_submit('payload_checked', '2', '{"n": 1}')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('payload_checked', '2', '{"n": 0}')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('payload_checked', '2', '{"n": 1}')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('payload_checked', '2', '{"n": 0}')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('payload_checked', '2', '{"n": 1}')$$);
COMMIT;
SELECT version FROM es_submit('payload_recursive', '3', '{"n": 3, "again": 3}');
SELECT stream, version, payload FROM es.event
 WHERE type = 'RECURSED' ORDER BY stream, version;

--
-- Types that cannot be used, or not any more
--

SELECT pg_temp.try($$SELECT es_create_command('payload_bad', 'payload', 'E', payload_type => 'integer')$$);
SELECT pg_temp.try($$SELECT es_create_command('payload_bad', 'payload', 'E', payload_type => 'payload_amount')$$);
SELECT pg_temp.try($$SELECT es_create_command('payload_bad', 'payload', 'E', payload_type => 'payload_order[]')$$);
SELECT pg_temp.try($$SELECT es_create_command('payload_bad', 'payload', 'E', payload_type => 'payload_missing')$$);
CREATE TYPE payload_empty AS ();
SELECT es_create_command('payload_empty', 'payload', 'E', payload_type => 'payload_empty');
SELECT pg_temp.try($$SELECT version FROM es_submit('payload_empty', '4')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('payload_empty', '4', '{"a": 1}')$$);
DROP TYPE payload_empty;
SELECT pg_temp.try($$SELECT version FROM es_submit('payload_empty', '4')$$);
-- A table's row type is a composite type too.
CREATE TABLE payload_table (n integer NOT NULL, label text);
SELECT es_create_command('payload_table', 'payload', 'E', payload_type => 'payload_table');
SELECT pg_temp.try($$SELECT version FROM es_submit('payload_table', '5', '{"n": 1}')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('payload_table', '5', '{"n": "x"}')$$);
SELECT pg_temp.try($$SELECT version FROM es_submit('payload_table', '5', '{"m": 1}')$$);

-- The right to use the type is that of who creates the command.
CREATE ROLE regress_es_clerk;
SELECT es_grant('regress_es_clerk', 'writer');
GRANT EXECUTE ON FUNCTION es_create_command TO regress_es_clerk;
REVOKE USAGE ON TYPE payload_order FROM PUBLIC;
SET ROLE regress_es_clerk;
SELECT pg_temp.try($$SELECT es_create_command('payload_clerk', 'payload', 'E', payload_type => 'payload_order')$$);
SELECT pg_temp.order('{"customer": "ann", "address": {"zip": "1"}}') IS NOT NULL;
RESET ROLE;
DROP OWNED BY regress_es_clerk;
DROP ROLE regress_es_clerk;

SELECT count(es_drop_command(name)::text) FROM es_commands WHERE category = 'payload';
DROP TYPE payload_order, payload_line, payload_with_function, payload_with_recursion;
DROP DOMAIN payload_amount, payload_name, payload_home, payload_checked, payload_recursive;
DROP TYPE payload_address, payload_colour;
DROP TABLE payload_table;
DROP FUNCTION payload_checked, payload_recursive;
SET es.allow_destructive = on;
DELETE FROM es.event WHERE category = 'payload';
