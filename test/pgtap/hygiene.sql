-- What the extension has put into the catalog gives nobody more than it should.
BEGIN;
SELECT plan(8);

CREATE TEMP VIEW members AS
	SELECT d.classid, d.objid
	  FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
	 WHERE e.extname = 'es' AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e';
CREATE TEMP VIEW functions AS
	SELECT p.oid::regprocedure::text AS name, p.*, l.lanname
	  FROM members m JOIN pg_proc p ON p.oid = m.objid AND m.classid = 'pg_proc'::regclass
	  JOIN pg_language l ON l.oid = p.prolang;
CREATE TEMP VIEW relations AS
	SELECT c.oid::regclass::text AS name, c.*
	  FROM members m JOIN pg_class c ON c.oid = m.objid AND m.classid = 'pg_class'::regclass;

SELECT is_empty($$SELECT name FROM functions
	WHERE has_function_privilege('public', oid, 'EXECUTE')$$,
	'PUBLIC may execute no function');
SELECT is_empty($$SELECT name FROM relations r, aclexplode(r.relacl) a WHERE a.grantee = 0$$,
	'PUBLIC has no right on any table, view or sequence');
SELECT is_empty($$SELECT FROM pg_namespace n, aclexplode(n.nspacl) a
	WHERE n.nspname = 'es' AND a.grantee = 0$$,
	'PUBLIC may not look into the schema es');
SELECT is_empty($$SELECT name FROM functions WHERE prosecdef
	AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)$$,
	'every SECURITY DEFINER function pins its search_path, pg_temp last');
SELECT is_empty($$SELECT name FROM functions WHERE lanname <> 'c'
	AND prosqlbody IS NULL	-- was parsed when it was created
	AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)$$,
	'every function that is not in C pins its search_path, pg_temp last');
SELECT is_empty($$SELECT name FROM functions WHERE prosecdef AND proleakproof$$,
	'no function claims to be leakproof with the rights of another');
SELECT is_empty($$SELECT name FROM functions WHERE name !~ '^(public\.)?es_' AND name !~ '^es\.'$$,
	'all that is outside the schema es is called es_something');
SELECT is_empty($$SELECT name FROM relations WHERE relkind = 'r' AND relhasrules
	UNION SELECT name FROM relations WHERE relkind = 'r' AND relrowsecurity$$,
	'no table comes with rules or policies');
SELECT * FROM finish();
ROLLBACK;
