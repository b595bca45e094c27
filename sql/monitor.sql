--
-- What an administrator looks at, and who may do what.
--

CREATE FUNCTION es.stat_append(
	OUT pid integer,
	OUT first_position bigint)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'es_stat_append' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION es.stat_append() IS 'Transactions of this database that have appended and not ended.';

CREATE VIEW es_stat_append AS
	SELECT s.pid, a.usename, a.application_name, s.first_position,
		   a.xact_start, a.state, a.wait_event_type, a.wait_event, a.query
	  FROM es.stat_append() s
	  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) s.pid
	 ORDER BY s.first_position;
COMMENT ON VIEW es_stat_append IS
	'In-flight appenders, oldest first: the first one holds the settled position back.';

CREATE FUNCTION es.suspended() RETURNS boolean
	AS 'MODULE_PATHNAME', 'es_suspended' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION es.suspended() IS
	'Whether this database is a copy whose workers wait for es_activate().';

CREATE FUNCTION es.stat_worker(
	OUT pid integer,
	OUT kind text,
	OUT role oid,
	OUT started_at timestamptz)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'es_stat_worker' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION es.stat_worker() IS 'The worker processes of es: the launcher and those of this database.';

CREATE VIEW es_stat_workers AS
	SELECT w.pid, w.kind, r.rolname AS role, w.started_at,
		   a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL AS in_transaction,
		   a.state, a.wait_event, a.query AS activity
	  FROM es.stat_worker() w
	  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) w.pid
	  LEFT JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) w.role
	 ORDER BY w.kind, r.rolname;
COMMENT ON VIEW es_stat_workers IS 'The background workers that serve this database.';

CREATE VIEW es_projections AS
	SELECT p.name, p.owner::pg_catalog.text AS owner, p.mode,
		   CASE WHEN p.paused THEN 'paused'
				WHEN es.suspended() THEN 'suspended'
				WHEN c.error IS NOT NULL THEN 'stopped'
				WHEN c."position" OPERATOR(pg_catalog.<) s."position" THEN 'running'
				ELSE 'caught up'
		   END AS status,
		   c."position",
		   s."position" AS settled_position,
		   CASE WHEN c."position" OPERATOR(pg_catalog.<) s."position"
				THEN s."position" OPERATOR(pg_catalog.-) c."position" ELSE 0 END AS lag_events,
		   CASE WHEN c."position" OPERATOR(pg_catalog.<) s."position"
				THEN (SELECT pg_catalog.round(EXTRACT(epoch FROM pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) e.recorded_at), 3)
						FROM es.event e
					   WHERE e."position" OPERATOR(pg_catalog.>) c."position"
						 AND e."position" OPERATOR(pg_catalog.<=) s."position"
					   ORDER BY e."position" LIMIT 1)
				ELSE 0 END AS lag_seconds,
		   c.events_applied, c.batches, c.applied_at,
		   c.error AS last_error, c.error_sqlstate AS last_error_sqlstate,
		   c.error_position AS last_error_position, c.error_at AS last_error_at,
		   c.retries, p.categories, p.types, p.partitions, c.partition, p.query
	  FROM es.projection p
	  JOIN es.checkpoint c ON c.projection OPERATOR(pg_catalog.=) p.name
	 CROSS JOIN (SELECT es_settled() AS "position") s;
COMMENT ON VIEW es_projections IS 'How each projection stands: status, position, lag and last error.';

CREATE VIEW es_commands AS
	SELECT name, category, event_type, validate, creates, payload_type,
		   owner::pg_catalog.text AS owner, created_at
	  FROM es.command_type;
COMMENT ON VIEW es_commands IS 'The commands that es_submit() accepts.';

--
-- Rights: GRANT on the right objects, by the name of a job.
--

-- The objects of the extension that a kind of role needs, as GRANT writes them.
CREATE FUNCTION es.rights(kind text) RETURNS SETOF text
	LANGUAGE plpgsql STABLE STRICT
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	functions text[];
	relations text[];
BEGIN
	functions := CASE kind
		WHEN 'reader' THEN ARRAY['es_read', 'es_stream', 'es_settled', 'es_epoch', 'es_wait', 'suspended',
			'es_watch_key', 'es_unwatch_key']
		WHEN 'writer' THEN ARRAY['es_append', 'es_append_batch', 'es_submit', 'es_settled', 'es_epoch', 'es_wait']
		WHEN 'projector' THEN ARRAY['es_create_projection', 'es_drop_projection', 'es_pause', 'es_resume',
			'es_watch', 'es_unwatch', 'es_watch_key', 'es_unwatch_key', 'rebuilt', 'watches',
			'es_settled', 'es_epoch', 'es_wait', 'suspended', 'batch_after', 'batch_to', 'batch_has']
		WHEN 'consumer' THEN ARRAY['es_create_subscription', 'es_drop_subscription', 'es_fetch', 'es_ack',
			'es_nack', 'es_heartbeat', 'es_leave', 'es_retry_delivery', 'es_read', 'es_settled', 'es_epoch']
	END;
	relations := CASE kind
		WHEN 'reader' THEN ARRAY['event', 'tag', 'es_projections', 'es_commands']
		WHEN 'writer' THEN ARRAY['es_commands']
		WHEN 'projector' THEN ARRAY['es_batch', 'es_projections', 'es_watches']
		WHEN 'consumer' THEN ARRAY['event', 'es_subscriptions', 'es_dead_deliveries', 'es_channels']
	END;
	IF kind NOT IN ('reader', 'writer', 'projector', 'consumer', 'admin') THEN
		RAISE EXCEPTION 'unrecognized kind of rights "%"', kind
			USING ERRCODE = 'invalid_parameter_value',
				  HINT = 'It must be reader, writer, projector, consumer or admin.';
	END IF;

	RETURN QUERY
		SELECT format('EXECUTE ON FUNCTION %s', p.oid::regprocedure)
		  FROM pg_depend d
		  JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'es'
		  JOIN pg_proc p ON p.oid = d.objid
		 WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass
		   AND d.deptype = 'e'
		   AND (kind = 'admin' OR p.proname = ANY (functions));
	RETURN QUERY
		SELECT format('SELECT ON %s', c.oid::regclass)
		  FROM pg_depend d
		  JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'es'
		  JOIN pg_class c ON c.oid = d.objid AND c.relkind IN ('r', 'v')
		 WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_extension'::regclass
		   AND d.deptype = 'e'
		   AND (kind = 'admin' OR c.relname = ANY (relations));
	RETURN NEXT 'USAGE ON SCHEMA es';
END
$$;
COMMENT ON FUNCTION es.rights(text) IS 'The rights that es_grant() gives for a kind of role.';

CREATE FUNCTION es_grant("role" regrole, kind text) RETURNS void
	LANGUAGE plpgsql VOLATILE STRICT
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	r text;
BEGIN
	FOR r IN SELECT es.rights(kind) LOOP
		EXECUTE format('GRANT %s TO %s', r, "role");
	END LOOP;
END
$$;
COMMENT ON FUNCTION es_grant(regrole, text) IS
	'Give a role the rights of a reader, writer, projector, consumer or admin of the log.';

CREATE FUNCTION es_revoke("role" regrole, kind text) RETURNS void
	LANGUAGE plpgsql VOLATILE STRICT
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	r text;
BEGIN
	FOR r IN SELECT es.rights(kind) LOOP
		CONTINUE WHEN r LIKE 'USAGE %' AND kind <> 'admin';
		EXECUTE format('REVOKE %s FROM %s', r, "role");
	END LOOP;
END
$$;
COMMENT ON FUNCTION es_revoke(regrole, text) IS
	'Take back what es_grant() gave; what another kind of rights shares with it goes too.';

REVOKE ALL ON ALL TABLES IN SCHEMA es FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA es FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA es FROM PUBLIC;
DO $$
DECLARE
	f text;
BEGIN
	FOR f IN SELECT p.oid::pg_catalog.regprocedure
			   FROM pg_catalog.pg_depend d
			   JOIN pg_catalog.pg_extension x ON x.oid OPERATOR(pg_catalog.=) d.refobjid
			   JOIN pg_catalog.pg_proc p ON p.oid OPERATOR(pg_catalog.=) d.objid
			  WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
				AND d.deptype OPERATOR(pg_catalog.=) 'e'
				AND x.extname OPERATOR(pg_catalog.=) 'es'
	LOOP
		EXECUTE pg_catalog.format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
	END LOOP;
END
$$;
