-- Every object of the extension has a comment: \df+ is the documentation.
BEGIN;
SELECT plan(2);

CREATE TEMP VIEW uncommented AS
	SELECT pg_describe_object(d.classid, d.objid, 0) AS object
	  FROM pg_depend d
	  JOIN pg_extension e ON e.oid = d.refobjid
	 WHERE e.extname = 'es'
	   AND d.refclassid = 'pg_extension'::regclass
	   AND d.deptype = 'e'
	   AND d.classid IN ('pg_proc'::regclass, 'pg_class'::regclass,
						 'pg_type'::regclass, 'pg_namespace'::regclass)
	   -- What comes with another object has no comment of its own: the sequence
	   -- of a column, the row type of a table, the array type of a type.
	   AND NOT EXISTS (
			SELECT FROM pg_depend o
			 WHERE o.classid = d.classid AND o.objid = d.objid
			   AND o.objsubid = 0 AND o.deptype IN ('a', 'i')
			   AND o.refclassid IN ('pg_class'::regclass, 'pg_type'::regclass))
	   AND obj_description(d.objid, d.classid::regclass::name) IS NULL;

SELECT isnt_empty(
	$$SELECT FROM pg_depend WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'$$,
	'the extension has objects');
SELECT is_empty('SELECT object FROM uncommented ORDER BY 1',
	'every function, table, view, type, sequence and schema has a comment');

SELECT * FROM finish();
ROLLBACK;
