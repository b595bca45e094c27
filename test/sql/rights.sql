-- Who may do what: nothing for PUBLIC, jobs by es_grant(), single commands by
-- es_grant_command(), rows by row security.
\set SHOW_CONTEXT never
SET client_min_messages = error;
CREATE DATABASE regress_es_rights;
\c regress_es_rights
SET client_min_messages = error;

-- Default privileges that would open everything, and functions and operators
-- that would be taken for the server's if a name of ours were not qualified.
CREATE ROLE regress_es_nobody;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO PUBLIC;
CREATE SCHEMA hostile;
GRANT USAGE ON SCHEMA hostile TO PUBLIC;
CREATE FUNCTION hostile.trap(text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION hostile.trap_bigint(bigint, bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION hostile.trap_text(text, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION hostile.trap_oid(oid, oid) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION hostile.trap_name(name, text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION hostile.clock_timestamp() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION hostile.now() RETURNS timestamptz LANGUAGE plpgsql AS $$ BEGIN RAISE 'trapped'; END $$;
CREATE FUNCTION hostile.format(text, VARIADIC "any") RETURNS text LANGUAGE internal AS 'text_format';
CREATE OPERATOR hostile.= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = hostile.trap_bigint);
CREATE OPERATOR hostile.> (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = hostile.trap_bigint);
CREATE OPERATOR hostile.< (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = hostile.trap_bigint);
CREATE OPERATOR hostile.<= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = hostile.trap_bigint);
CREATE OPERATOR hostile.>= (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = hostile.trap_bigint);
CREATE OPERATOR hostile.- (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = hostile.trap_bigint);
CREATE OPERATOR hostile.= (LEFTARG = text, RIGHTARG = text, FUNCTION = hostile.trap_text);
CREATE OPERATOR hostile.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = hostile.trap_oid);
CREATE OPERATOR hostile.= (LEFTARG = name, RIGHTARG = text, FUNCTION = hostile.trap_name);
CREATE TABLE hostile.event (LIKE pg_class);
CREATE TABLE hostile.checkpoint (LIKE pg_class);
CREATE TABLE hostile.pg_roles (LIKE pg_class);
SET search_path = hostile, pg_catalog, public;
CREATE EXTENSION es SCHEMA public;

-- Nothing of the extension came to depend on what is not its own.
SELECT pg_describe_object(d.classid, d.objid, 0) AS object,
	   pg_describe_object(d.refclassid, d.refobjid, 0) AS depends_on
  FROM pg_catalog.pg_depend d
 WHERE d.refobjid OPERATOR(pg_catalog.=) ANY (
		SELECT oid FROM pg_catalog.pg_proc WHERE pronamespace::regnamespace::text LIKE 'hostile' UNION ALL
		SELECT oid FROM pg_catalog.pg_operator WHERE oprnamespace::regnamespace::text LIKE 'hostile' UNION ALL
		SELECT oid FROM pg_catalog.pg_class WHERE relnamespace::regnamespace::text LIKE 'hostile')
   AND d.classid::regclass::text NOT LIKE '%pg_operator'
   AND d.deptype::text NOT LIKE 'i'
   AND pg_describe_object(d.classid, d.objid, 0) NOT LIKE '%hostile%';

-- It works on under such a search_path: everything a caller can reach.
SELECT es_append('account-1', 'OPENED', '{"owner": "ann"}', 0, '{"tenant": "a"}', ARRAY['x']) IS NOT NULL AS ok;
SELECT es_append_batch('account-1', '[{"type": "DEPOSITED", "tags": ["y"], "metadata": {"tenant": "a"}}]', 1) IS NOT NULL AS ok;
SELECT es_create_command('OPEN', 'account', 'OPENED', creates => true);
SELECT version, events, duplicate FROM es_submit('OPEN', '2', command_id => '00000000-0000-0000-0000-000000000001');
SELECT version, events, duplicate FROM es_submit('OPEN', '2', command_id => '00000000-0000-0000-0000-000000000001');
SELECT count(*) FROM es_read();
SELECT count(*) FROM es_read(0, 10, 'account', ARRAY['OPENED']);
SELECT count(*) FROM es_stream('account-1');
SELECT es_create_projection('p', 'SELECT FROM es_batch');
SELECT es_pause('p'), es_resume('p');
SELECT es_wait('p', max("position")) FROM es.event;
SELECT count(*) FROM es_projections;
SELECT count(*) FROM es_commands;
SELECT count(*) FROM es_stat_append;
SELECT count(*) > 0 AS workers FROM es_stat_workers;
SELECT es_grant('regress_es_nobody', 'admin');
SELECT es_revoke('regress_es_nobody', 'admin');
SELECT es_drop_projection('p');
RESET search_path;

-- PUBLIC can do nothing.
SELECT d.objid::regprocedure AS function_of_public
  FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'es'
 WHERE d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
   AND has_function_privilege('regress_es_nobody', d.objid, 'EXECUTE');
SELECT c.oid::regclass AS relation_of_public
  FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'es'
  JOIN pg_class c ON c.oid = d.objid
 WHERE d.classid = 'pg_class'::regclass AND d.deptype = 'e'
   AND (CASE c.relkind WHEN 'S' THEN has_sequence_privilege('regress_es_nobody', c.oid, 'USAGE, SELECT, UPDATE')
			 ELSE has_any_column_privilege('regress_es_nobody', c.oid, 'SELECT, INSERT, UPDATE, REFERENCES')
				  OR has_table_privilege('regress_es_nobody', c.oid, 'DELETE, TRUNCATE, TRIGGER') END);
SELECT has_schema_privilege('regress_es_nobody', 'es', 'USAGE, CREATE') AS schema_of_public;
SET ROLE regress_es_nobody;
SELECT es_append('a-1', 'A');
SELECT es_submit('OPEN', '9');
SELECT * FROM es_read();
SELECT * FROM es.event;
SELECT * FROM es_batch;
SELECT es_activate();
SELECT es_grant('regress_es_nobody', 'admin');
SELECT es_settled();
SELECT nextval('es.event_position');
RESET ROLE;

-- A reader reads.
CREATE ROLE regress_es_reader;
CREATE ROLE regress_es_writer;
CREATE ROLE regress_es_projector LOGIN;
CREATE ROLE regress_es_admin;
SELECT es_grant('regress_es_reader', 'reader'), es_grant('regress_es_writer', 'writer'),
	   es_grant('regress_es_projector', 'projector'), es_grant('regress_es_admin', 'admin');
\set VERBOSITY sqlstate
SELECT es_grant('regress_es_reader', 'king');
\set VERBOSITY default
SELECT es_grant('-', 'reader');
SET ROLE regress_es_reader;
SELECT count(*) FROM es_read();
SELECT count(*) FROM es_stream('account-1');
SELECT count(*) FROM es.tag;
SELECT count(*) FROM es_projections;
SELECT es_append('a-1', 'A');
SELECT es_submit('OPEN', '9');
SELECT es_create_projection('q', 'SELECT FROM es_batch');
INSERT INTO es.event SELECT * FROM es.event;
SELECT * FROM es.command_log;
RESET ROLE;

-- A writer writes, and does not read.
SET ROLE regress_es_writer;
SELECT version FROM es_append('account-3', 'OPENED');
SELECT version FROM es_append_batch('account-3', '[{"type": "DEPOSITED"}]', 1);
SELECT version FROM es_submit('OPEN', '4');
SELECT es_read();
SELECT * FROM es_batch;
SELECT es_create_command('CLOSE', 'account', 'CLOSED');
SELECT es_drop_command('OPEN');
INSERT INTO es.event VALUES (1000, 1, now(), 'a-1', 'a', 'A', '{}', NULL);
DELETE FROM es.event;
SELECT setval('es.event_position', 1);
SELECT es_wait('p', 1);
RESET ROLE;

-- A projector has projections of its own.
SELECT es_create_projection('p', 'SELECT FROM es_batch');
SET ROLE regress_es_projector;
SELECT es_create_projection('q', 'SELECT FROM es_batch');
SELECT es_pause('q'), es_resume('q');
SELECT es_drop_projection('p');
SELECT es_pause('p');
SELECT es_append('a-1', 'A');
SELECT es_drop_projection('q');
RESET ROLE;

-- An administrator does all of it and gives rights, but is no superuser: the
-- log stays closed to him.
SET ROLE regress_es_admin;
SELECT es_create_command('CLOSE', 'account', 'CLOSED');
SELECT version FROM es_submit('CLOSE', '4');
SELECT count(*) FROM es_read();
SELECT es_grant('regress_es_nobody', 'reader');
DELETE FROM es.event;
ALTER TABLE es.event DISABLE TRIGGER ALL;
UPDATE es.checkpoint SET "position" = 0;
SELECT es_drop_projection('p');
RESET ROLE;
SET ROLE regress_es_nobody;
SELECT count(*) FROM es_read();
RESET ROLE;

-- Taking one kind back leaves the other, and takes the rest.
SELECT es_grant('regress_es_reader', 'writer');
SELECT es_revoke('regress_es_reader', 'reader');
SET ROLE regress_es_reader;
SELECT es_settled() > 0 AS shared_right;
SELECT version FROM es_append('account-5', 'OPENED');
SELECT count(*) FROM es_read();
RESET ROLE;
SELECT es_revoke('regress_es_reader', 'writer'), es_revoke('regress_es_nobody', 'reader'),
	   es_revoke('regress_es_admin', 'admin'), es_revoke('regress_es_projector', 'projector');
SELECT count(*) AS rights_left
  FROM (SELECT proacl AS acl FROM pg_proc UNION ALL SELECT relacl FROM pg_class
		UNION ALL SELECT nspacl FROM pg_namespace) a,
	   aclexplode(acl) x
 WHERE x.grantee::regrole::text IN ('regress_es_reader', 'regress_es_nobody', 'regress_es_admin', 'regress_es_projector')
   AND x.privilege_type <> 'CREATE';

-- One command: not the others, not es_append(), and through a group too.
CREATE ROLE regress_es_clerks;
CREATE ROLE regress_es_clerk IN ROLE regress_es_clerks;
CREATE ROLE regress_es_intern NOINHERIT IN ROLE regress_es_clerks;
SELECT es_grant_command('regress_es_clerks', 'OPEN');
SELECT granted_to FROM es_commands WHERE name = 'OPEN';
SELECT es_grant_command('regress_es_clerks', 'NO SUCH');
SELECT es_grant_command('-', 'OPEN');
SELECT es_grant_command('4294967290', 'OPEN');
SET ROLE regress_es_clerk;
SELECT version FROM es_submit('OPEN', '6');
SELECT version FROM es_submit('CLOSE', '6');
SELECT version FROM es_submit('NO SUCH', '6');
-- the outcome of a command is not told to who may not submit it
SELECT version FROM es_submit('CLOSE', '2', command_id => '00000000-0000-0000-0000-000000000001');
SELECT es_append('account-6', 'CLOSED');
SELECT es_grant_command('regress_es_clerk', 'CLOSE');
RESET ROLE;
SET ROLE regress_es_intern;
SELECT version FROM es_submit('OPEN', '7');
RESET ROLE;
-- EXECUTE on es_submit() alone allows nothing.
GRANT EXECUTE ON FUNCTION es_submit TO regress_es_nobody;
SET ROLE regress_es_nobody;
SELECT version FROM es_submit('OPEN', '7');
RESET ROLE;
-- The owner of a command may submit it.
ALTER ROLE regress_es_nobody RENAME TO regress_es_somebody;
GRANT EXECUTE ON FUNCTION es_create_command TO regress_es_somebody;
GRANT USAGE ON SCHEMA es TO regress_es_somebody;
SET ROLE regress_es_somebody;
SELECT es_create_command('RENAME', 'account', 'RENAMED');
SELECT version FROM es_submit('RENAME', '7');
RESET ROLE;
-- Revoked in another transaction of the same session, which has it cached.
SELECT es_revoke_command('regress_es_clerks', 'OPEN');
SET ROLE regress_es_clerk;
SELECT version FROM es_submit('OPEN', '8');
RESET ROLE;
SELECT es_revoke_command('regress_es_clerks', 'OPEN');
-- es_revoke() of writer leaves single commands; a dropped command leaves no grant.
SELECT es_grant_command('regress_es_clerk', 'OPEN'), es_grant('regress_es_clerk', 'writer');
SELECT es_revoke('regress_es_clerk', 'writer');
SET ROLE regress_es_clerk;
SELECT version FROM es_submit('OPEN', '8');
RESET ROLE;
SELECT es_drop_command('OPEN'), es_create_command('OPEN', 'account', 'OPENED');
SET ROLE regress_es_clerk;
SELECT version FROM es_submit('OPEN', '9');
RESET ROLE;
TABLE es.command_grant;

-- Tenants: policies by metadata and by category hold for es_read(), es_stream(),
-- es.event, es.tag and es_batch.
SELECT es_append('account-b', 'OPENED', '{}', NULL, '{"tenant": "b"}', ARRAY['z']) IS NOT NULL AS ok;
SELECT es_append('audit-1', 'SEEN', '{}', NULL, '{"tenant": "a"}') IS NOT NULL AS ok;
CREATE ROLE regress_es_tenant LOGIN;
SELECT es_grant('regress_es_tenant', 'reader'), es_grant('regress_es_tenant', 'projector');
CREATE TABLE tenant_of (member regrole, tenant text);
INSERT INTO tenant_of VALUES ('regress_es_tenant', 'a');
GRANT SELECT ON tenant_of TO PUBLIC;
CREATE TABLE seen_by_tenant (stream text, version bigint);
GRANT INSERT ON seen_by_tenant TO regress_es_tenant;
ALTER TABLE es.event ENABLE ROW LEVEL SECURITY;
ALTER TABLE es.tag ENABLE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON es.event FOR SELECT USING (
	metadata->>'tenant' = (SELECT t.tenant FROM tenant_of t WHERE t.member = current_user::regrole));
CREATE POLICY of_visible_event ON es.tag FOR SELECT USING (
	EXISTS (SELECT FROM es.event e WHERE e."position" = tag."position"));
CREATE POLICY no_audit ON es.event AS RESTRICTIVE FOR SELECT USING (category <> 'audit');
SET ROLE regress_es_tenant;
SELECT stream, version FROM es_read();
SELECT stream, version FROM es_read(0, 100, 'account', ARRAY['OPENED']);
SELECT count(*) AS of_category_audit FROM es_read(0, 100, 'audit');
SELECT count(*) AS of_other_tenant FROM es_stream('account-b');
SELECT count(*) AS of_own FROM es_stream('account-1');
SELECT tag FROM es.tag ORDER BY tag;
SELECT stream, version FROM es_read_matching('{"items": [{"types": ["OPENED"]}]}');
SELECT es_create_projection('of_tenant', 'INSERT INTO seen_by_tenant SELECT stream, version FROM es_batch', mode => 'sync');
SET es.batch = '0,1000000';
SELECT stream, version FROM es_batch ORDER BY position;
RESET es.batch;
-- A function that costs nothing does not see the rows before the policy does.
CREATE FUNCTION pg_temp.leak(jsonb) RETURNS boolean COST 0.0000001 LANGUAGE plpgsql AS
$$ BEGIN RAISE WARNING 'saw %', $1; RETURN true; END $$;
SET client_min_messages = warning;
SELECT count(*) FROM es.event WHERE pg_temp.leak(metadata);
SET es.batch = '0,1000000';
SELECT count(*) FROM es_batch WHERE pg_temp.leak(metadata);
RESET es.batch;
SET client_min_messages = error;
RESET ROLE;
-- The same session, as a role that the policy does not bind.
SELECT count(*) > 2 AS sees_all FROM es_read();
-- What somebody else appends, a tenant's projection gets as far as the tenant may
-- see it.
SELECT version FROM es_append('account-b', 'CLOSED', metadata => '{"tenant": "b"}');
SELECT version FROM es_append('account-1', 'CLOSED', metadata => '{"tenant": "a"}');
TABLE seen_by_tenant;

\c contrib_regression
DROP DATABASE regress_es_rights;
DROP ROLE regress_es_somebody, regress_es_reader, regress_es_writer, regress_es_projector,
	regress_es_admin, regress_es_clerk, regress_es_clerks, regress_es_intern, regress_es_tenant;
