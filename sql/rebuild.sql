--
-- Rebuilding read models beside those that are served.
--

CREATE TABLE es.rebuild (
	id				integer GENERATED ALWAYS AS IDENTITY,
	projection		text COLLATE pg_catalog."C" NOT NULL,
	stream			text COLLATE pg_catalog."C",
	phase			text NOT NULL DEFAULT 'prepare',
	start_after		bigint NOT NULL,
	requested_at	timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	started_at		timestamptz,
	merged_at		timestamptz,
	finished_at		timestamptz,
	"position"		bigint,
	events			bigint,
	rows_inserted	bigint,
	rows_updated	bigint,
	rows_deleted	bigint,
	CONSTRAINT rebuild_pkey PRIMARY KEY (id),
	CONSTRAINT rebuild_phase_check
		CHECK (phase OPERATOR(pg_catalog.=) ANY (ARRAY['prepare', 'fill', 'merge', 'done', 'cancelled']))
);
CREATE UNIQUE INDEX rebuild_active_idx ON es.rebuild (projection) WHERE finished_at IS NULL;
COMMENT ON TABLE es.rebuild IS
	'Rebuilds of projections; the shadow tables of number n are in the schema es_rebuild_n while it goes on.';

SELECT pg_catalog.pg_extension_config_dump('es.rebuild', '');
SELECT pg_catalog.pg_extension_config_dump('es.rebuild_id_seq', '');

CREATE FUNCTION es_rebuild(name text, stream text DEFAULT NULL) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_rebuild(text, text) IS
	'Build the tables of a projection, or the rows of one stream, anew from the log while they go on being served.';

CREATE FUNCTION es_cancel_rebuild(name text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_cancel_rebuild(text) IS 'Give up the rebuild of a projection that is under way.';

-- What follows writes SQL that the projector runs as the projection's owner.

CREATE FUNCTION es.shadow_sql(rebuild integer) RETURNS SETOF text
	LANGUAGE sql STABLE STRICT
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('CREATE TABLE %I.%I (LIKE %s INCLUDING ALL)',
				  'es_rebuild_' || r.id, c.relname, c.oid::regclass)
	  FROM es.rebuild r
	  JOIN es.projection p ON p.name = r.projection
	 CROSS JOIN unnest(p.tables) t
	  JOIN pg_class c ON c.oid = t
	 WHERE r.id = rebuild
	 ORDER BY c.relname
$$;
COMMENT ON FUNCTION es.shadow_sql(integer) IS 'The statements that create the shadow tables of a rebuild.';

CREATE FUNCTION es.spare_index_sql(rebuild integer) RETURNS SETOF text
	LANGUAGE sql STABLE STRICT
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT format('DROP INDEX %s', i.indexrelid::regclass)
	  FROM pg_index i
	  JOIN pg_class c ON c.oid = i.indrelid
	  JOIN pg_namespace n ON n.oid = c.relnamespace
	 WHERE n.nspname = 'es_rebuild_' || rebuild AND NOT i.indisunique AND NOT i.indisexclusion
	 ORDER BY i.indexrelid
$$;
COMMENT ON FUNCTION es.spare_index_sql(integer) IS
	'The statements that drop, from shadow tables, the indexes that keep nothing unique.';

-- The columns of a table that a rebuild writes.  A surrogate is a number that
-- the table gives itself: where it is not the key, rows keep what they have.
CREATE FUNCTION es.model_columns(
	model regclass,
	OUT name text,
	OUT surrogate boolean)
	RETURNS SETOF record
	LANGUAGE sql STABLE STRICT
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT a.attname,
		   a.attidentity <> '' OR coalesce(pg_get_expr(d.adbin, d.adrelid) LIKE 'nextval(%', false)
	  FROM pg_attribute a
	  LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
	 WHERE a.attrelid = model AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
	 ORDER BY a.attnum
$$;
COMMENT ON FUNCTION es.model_columns(regclass) IS 'The columns of a read model that a rebuild writes.';

-- The comparison of rows l and s by a unique key of the table, or NULL where
-- it has none: any but one of surrogates, if there is, the primary key first.
-- A row with a NULL in its key is like no other, and written anew.
CREATE FUNCTION es.model_key(model regclass, OUT names text[], OUT comparison text)
	LANGUAGE sql STABLE STRICT
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT array_agg(a.attname::text ORDER BY k.n),
		   string_agg(format('l.%I OPERATOR(%I.%s) s.%1$I', a.attname, n.nspname, o.oprname),
					  ' AND ' ORDER BY k.n)
	  FROM pg_index i
	 CROSS JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[])
			WITH ORDINALITY k (attnum, opclass, n)
	  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
	  JOIN es.model_columns(model) m ON m.name = a.attname
	  JOIN pg_opclass c ON c.oid = k.opclass
	  JOIN pg_amop x ON x.amopfamily = c.opcfamily AND x.amoplefttype = c.opcintype
	   AND x.amoprighttype = c.opcintype AND x.amopstrategy = 3
	  JOIN pg_operator o ON o.oid = x.amopopr
	  JOIN pg_namespace n ON n.oid = o.oprnamespace
	 WHERE i.indrelid = model AND i.indisunique AND i.indimmediate AND i.indisvalid
	   AND i.indpred IS NULL AND i.indexprs IS NULL AND k.n <= i.indnkeyatts
	 GROUP BY i.indexrelid, i.indisprimary, i.indnkeyatts
	HAVING count(*) = i.indnkeyatts
	 ORDER BY bool_or(m.surrogate), NOT bool_and(a.attnotnull), NOT i.indisprimary, i.indexrelid
	 LIMIT 1
$$;
COMMENT ON FUNCTION es.model_key(regclass) IS 'The unique key by which a rebuild matches rows.';

-- How deep a table is below others of a set that it refers to.
CREATE FUNCTION es.model_depth(model regclass, models regclass[]) RETURNS integer
	LANGUAGE sql STABLE STRICT
	SET search_path = pg_catalog, pg_temp
AS $$
	WITH RECURSIVE up (relid, depth) AS (
		SELECT model, 0
		UNION
		SELECT f.confrelid::regclass, up.depth + 1
		  FROM up JOIN pg_constraint f ON f.conrelid = up.relid AND f.contype = 'f'
		 WHERE f.confrelid = ANY (models) AND f.confrelid <> f.conrelid
		   AND up.depth < cardinality(models))
	SELECT max(depth) FROM up
$$;
COMMENT ON FUNCTION es.model_depth(regclass, regclass[]) IS
	'How many tables of a set refer to each other above a table.';

CREATE FUNCTION es.merge_sql(
	rebuild integer,
	way integer,
	OUT kind text,
	OUT sql text)
	RETURNS SETOF record
	LANGUAGE plpgsql STABLE STRICT
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	r record;
	names text;					-- of all columns ...
	snames text;				-- ... and of the shadow's
	lrow text;					-- what is compared, of the table ...
	srow text;					-- ... and of its shadow
	assign text;				-- what is set
	same_image text;			-- that these are the same
	lonly text;					-- only rows of the stream
	sonly text;
BEGIN
	-- Rows that come back must not take others with them while they are away.
	IF way = 3 AND EXISTS (
		SELECT FROM es.rebuild b
		  JOIN es.projection p ON p.name = b.projection
		  JOIN pg_constraint f ON f.confrelid = ANY (p.tables)
		 WHERE b.id = rebuild AND f.contype = 'f' AND f.confdeltype IN ('c', 'n', 'd'))
	THEN
		RETURN;
	END IF;
	FOR r IN
		WITH t AS (
			SELECT b.stream, p.tables, t.model, t.n, p.keys[t.n] AS stream_key, c.relname,
				   k.names AS key, k.comparison AS same,
				   es.model_depth(t.model, p.tables) AS depth
			  FROM es.rebuild b
			  JOIN es.projection p ON p.name = b.projection
			 CROSS JOIN unnest(p.tables) WITH ORDINALITY t (model, n)
			  JOIN pg_class c ON c.oid = t.model
			 CROSS JOIN es.model_key(t.model) k
			 WHERE b.id = rebuild)
		SELECT t.*, v.kind
		  FROM t, unnest(CASE way WHEN 1 THEN ARRAY['delete', 'update', 'insert']
								  WHEN 2 THEN ARRAY['insert', 'update', 'delete']
								  ELSE ARRAY['delete', 'insert'] END) WITH ORDINALITY v (kind, n)
		 ORDER BY v.n, CASE WHEN v.kind = 'delete' THEN -t.depth ELSE t.depth END, t.n
	LOOP
		SELECT string_agg(format('%I', m.name), ', '),
			   string_agg(format('s.%I', m.name), ', '),
			   string_agg(format('l.%I', m.name), ', ') FILTER (WHERE compared),
			   string_agg(format('s.%I', m.name), ', ') FILTER (WHERE compared),
			   string_agg(format('%I = s.%1$I', m.name), ', ') FILTER (WHERE compared)
		  INTO names, snames, lrow, srow, assign
		  FROM (SELECT m.name, NOT m.surrogate OR m.name = ANY (r.key) AS compared
				  FROM es.model_columns(r.model) m) m;
		same_image := format('record_image_eq(ROW(%s), ROW(%s))', lrow, srow);
		lonly := CASE WHEN r.stream IS NULL THEN 'true'
					  ELSE format('l.%I = %L', r.stream_key, r.stream) END;
		sonly := CASE WHEN r.stream IS NULL THEN 'true'
					  ELSE format('s.%I = %L', r.stream_key, r.stream) END;
		r.relname := format('%I.%I', 'es_rebuild_' || rebuild, r.relname);
		kind := r.kind;
		sql := CASE
			WHEN r.same IS NOT NULL AND kind = 'delete' THEN
				format('DELETE FROM %s l WHERE %s AND NOT EXISTS (SELECT FROM %s s WHERE %s AND %s)',
					   r.model, lonly, r.relname, r.same,
					   CASE WHEN way = 3 THEN same_image ELSE 'true' END)
			WHEN r.same IS NOT NULL AND kind = 'update' THEN
				format('UPDATE %s l SET %s FROM %s s WHERE %s AND %s AND NOT %s',
					   r.model, assign, r.relname, sonly, r.same, same_image)
			WHEN r.same IS NOT NULL THEN
				format('INSERT INTO %1$s (%2$s) OVERRIDING SYSTEM VALUE SELECT %6$s FROM %3$s s '
					   'WHERE %4$s AND NOT EXISTS (SELECT FROM %1$s l WHERE %5$s)',
					   r.model, names, r.relname, sonly, r.same, snames)
			-- Without a key, rows are matched as wholes, as often as they occur.
			WHEN kind = 'delete' THEN
				format('DELETE FROM %1$s d WHERE (d.tableoid, d.ctid) IN ('
					   'SELECT l.t, l.c FROM ('
					   'SELECT l.tableoid AS t, l.ctid AS c, ROW(%2$s)::text AS r, '
					   'row_number() OVER (PARTITION BY ROW(%2$s)::text) AS n FROM %1$s l WHERE %3$s) l '
					   'LEFT JOIN (SELECT ROW(%4$s)::text AS r, count(*) AS n FROM %5$s s WHERE %6$s GROUP BY 1) s '
					   'ON s.r = l.r WHERE l.n > coalesce(s.n, 0))',
					   r.model, lrow, lonly, srow, r.relname, sonly)
			WHEN kind = 'insert' THEN
				format('INSERT INTO %1$s (%2$s) OVERRIDING SYSTEM VALUE SELECT %8$s FROM ('
					   'SELECT s.*, ROW(%3$s)::text AS es_row, '
					   'row_number() OVER (PARTITION BY ROW(%3$s)::text) AS es_number FROM %4$s s WHERE %5$s) s '
					   'LEFT JOIN (SELECT ROW(%6$s)::text AS r, count(*) AS n FROM %1$s l WHERE %7$s GROUP BY 1) l '
					   'ON l.r = s.es_row WHERE s.es_number > coalesce(l.n, 0)',
					   r.model, names, srow, r.relname, sonly, lrow, lonly, snames)
		END;
		CONTINUE WHEN sql IS NULL;
		RETURN NEXT;
	END LOOP;
END
$$;
COMMENT ON FUNCTION es.merge_sql(integer, integer) IS
	'The statements that make tables what their shadows are, by writing nothing but the difference.';
