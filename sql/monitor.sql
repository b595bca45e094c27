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
	OUT number integer,
	OUT started_at timestamptz,
	OUT memory bigint)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'es_stat_worker' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION es.stat_worker() IS 'The worker processes of es: the launcher and those of this database.';

CREATE VIEW es_stat_workers AS
	SELECT w.pid, a.datname AS database, w.kind, r.rolname AS role, w.number, w.started_at,
		   a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL AS in_transaction,
		   a.state, a.wait_event, a.query AS activity, w.memory
	  FROM es.stat_worker() w
	  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid OPERATOR(pg_catalog.=) w.pid
	  LEFT JOIN pg_catalog.pg_roles r ON r.oid OPERATOR(pg_catalog.=) w.role
	 ORDER BY w.kind, r.rolname, w.number;
COMMENT ON VIEW es_stat_workers IS
	'The background workers that serve this database, what they do now, and the bytes they have allocated.';

CREATE VIEW es_stat_partitions AS
	SELECT p.name, c.partition, c.rebuild,
		   CASE WHEN c.rebuild OPERATOR(pg_catalog.>) 0 THEN 'rebuilding'
				WHEN p.paused THEN 'paused'
				WHEN es.suspended() THEN 'suspended'
				WHEN c.error IS NOT NULL THEN 'stopped'
				WHEN p.mode OPERATOR(pg_catalog.=) 'async'
				 AND c."position" OPERATOR(pg_catalog.<) s."position" THEN 'running'
				ELSE 'caught up'
		   END AS status,
		   CASE WHEN p.mode OPERATOR(pg_catalog.=) 'sync' AND c.rebuild OPERATOR(pg_catalog.=) 0
				THEN greatest(s."position", c."position") ELSE c."position" END AS "position",
		   s."position" AS settled_position,
		   CASE WHEN p.mode OPERATOR(pg_catalog.=) 'sync' AND c.rebuild OPERATOR(pg_catalog.=) 0 THEN 0
				ELSE greatest(s."position" OPERATOR(pg_catalog.-) c."position", 0) END AS lag_events,
		   -- What appenders apply is not counted: that would make them queue.
		   CASE WHEN p.mode OPERATOR(pg_catalog.=) 'async' OR c.rebuild OPERATOR(pg_catalog.>) 0
				THEN c.events_applied END AS events_applied,
		   CASE WHEN p.mode OPERATOR(pg_catalog.=) 'async' OR c.rebuild OPERATOR(pg_catalog.>) 0
				THEN c.batches END AS batches,
		   c.applied_at, c.catching_up, c.retries,
		   c.error AS last_error, c.error_sqlstate AS last_error_sqlstate,
		   c.error_position AS last_error_position, c.error_at AS last_error_at
	  FROM es.projection p
	  JOIN es.checkpoint c ON c.projection OPERATOR(pg_catalog.=) p.name
	 CROSS JOIN (SELECT es_settled() AS "position") s;
COMMENT ON VIEW es_stat_partitions IS
	'How each partition of each projection and rebuild stands.';

CREATE VIEW es_stat_rebuild AS
	SELECT r.projection, r.id AS rebuild, r.stream,
		   CASE WHEN r.finished_at IS NULL AND c.error IS NOT NULL THEN 'stopped'
				ELSE r.phase END AS phase,
		   coalesce(c."position", r."position") AS "position",
		   CASE WHEN r.finished_at IS NULL THEN s."position" ELSE r."position" END AS target,
		   CASE WHEN r.phase OPERATOR(pg_catalog.=) 'done' THEN 100
				ELSE pg_catalog.round((100.0 OPERATOR(pg_catalog.*)
					(c."position" OPERATOR(pg_catalog.-) r.start_after)) OPERATOR(pg_catalog./)
					greatest(s."position" OPERATOR(pg_catalog.-) r.start_after, 1), 1) END AS percent,
		   coalesce(c.events, r.events) AS events,
		   pg_catalog.round(coalesce(c.events, r.events) OPERATOR(pg_catalog./)
			   nullif(EXTRACT(epoch FROM coalesce(r.finished_at, pg_catalog.clock_timestamp())
				   OPERATOR(pg_catalog.-) r.started_at), 0)) AS events_per_second,
		   r.requested_at, r.started_at,
		   CASE WHEN r.finished_at IS NULL AND c."position" OPERATOR(pg_catalog.>) r.start_after
				THEN pg_catalog.clock_timestamp() OPERATOR(pg_catalog.+)
					((pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) r.started_at)
					 OPERATOR(pg_catalog.*)
					 ((s."position" OPERATOR(pg_catalog.-) c."position")::pg_catalog.float8
					  OPERATOR(pg_catalog./) (c."position" OPERATOR(pg_catalog.-) r.start_after)))
		   END AS estimated_end,
		   r.finished_at,
		   r.finished_at OPERATOR(pg_catalog.-) r.merged_at AS merge_time,
		   r.rows_inserted, r.rows_updated, r.rows_deleted,
		   c.error AS last_error, c.retries
	  FROM es.rebuild r
	  LEFT JOIN LATERAL (
			SELECT pg_catalog.min(k."position") AS "position",
				   pg_catalog.sum(k.events_applied) AS events,
				   pg_catalog.max(k.error) AS error, pg_catalog.max(k.retries) AS retries
			  FROM es.checkpoint k WHERE k.rebuild OPERATOR(pg_catalog.=) r.id
			 ) c ON true
	 CROSS JOIN (SELECT es_settled() AS "position") s
	 ORDER BY r.id;
COMMENT ON VIEW es_stat_rebuild IS 'Rebuilds of projections, under way and past: phase, progress, and what the merge wrote.';

CREATE VIEW es_projections AS
	SELECT p.name, p.owner::pg_catalog.text AS owner, p.mode,
		   CASE WHEN p.paused THEN 'paused'
				WHEN es.suspended() THEN 'suspended'
				WHEN c.last_error IS NOT NULL THEN 'stopped'
				WHEN EXISTS (SELECT FROM es.rebuild r
							  WHERE r.projection OPERATOR(pg_catalog.=) p.name
								AND r.finished_at IS NULL) THEN 'rebuilding'
				WHEN c.lag_events OPERATOR(pg_catalog.>) 0 THEN 'running'
				ELSE 'caught up'
		   END AS status,
		   c."position",
		   c.settled_position,
		   c.lag_events,
		   CASE WHEN c.lag_events OPERATOR(pg_catalog.>) 0
				THEN (SELECT pg_catalog.round(EXTRACT(epoch FROM
							pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) e.recorded_at), 3)
						FROM es.event e
					   WHERE e."position" OPERATOR(pg_catalog.>) c."position"
						 AND e."position" OPERATOR(pg_catalog.<=) c.settled_position
					   ORDER BY e."position" LIMIT 1)
				ELSE 0 END AS lag_seconds,
		   c.events_applied, c.batches, c.applied_at,
		   c.last_error, c.last_error_sqlstate, c.last_error_position, c.last_error_at,
		   c.retries,
		   (SELECT pg_catalog.count(*) FROM es.dead_letter d
			 WHERE d.projection OPERATOR(pg_catalog.=) p.name AND d.rebuild OPERATOR(pg_catalog.=) 0
			   AND d.status OPERATOR(pg_catalog.<>) 'discarded') AS dead_letters,
		   p.categories, p.types, p.partitions, p.batch_size, p.on_error, p.tables, p.query
	  FROM es.projection p
	 CROSS JOIN LATERAL (
			SELECT pg_catalog.min(u."position") AS "position",
				   pg_catalog.min(u.settled_position) AS settled_position,
				   pg_catalog.max(u.lag_events) AS lag_events,
				   pg_catalog.sum(u.events_applied)::pg_catalog.int8 AS events_applied,
				   pg_catalog.sum(u.batches)::pg_catalog.int8 AS batches,
				   pg_catalog.max(u.applied_at) AS applied_at,
				   pg_catalog.max(u.retries) AS retries,
				   (pg_catalog.array_agg(u.last_error ORDER BY u.last_error_at)
						FILTER (WHERE u.last_error IS NOT NULL))[1] AS last_error,
				   (pg_catalog.array_agg(u.last_error_sqlstate ORDER BY u.last_error_at)
						FILTER (WHERE u.last_error IS NOT NULL))[1] AS last_error_sqlstate,
				   (pg_catalog.array_agg(u.last_error_position ORDER BY u.last_error_at)
						FILTER (WHERE u.last_error IS NOT NULL))[1] AS last_error_position,
				   pg_catalog.min(u.last_error_at) AS last_error_at
			  FROM es_stat_partitions u
			 WHERE u.name OPERATOR(pg_catalog.=) p.name AND u.rebuild OPERATOR(pg_catalog.=) 0) c;
COMMENT ON VIEW es_projections IS 'How each projection stands: status, position, lag and last error.';

CREATE VIEW es_projection_errors AS
	SELECT e.projection, e.rebuild, e.partition, e.at, e."position", e.sqlstate, e.error, e.context
	  FROM es.projection_error e
	 ORDER BY e.at DESC;
COMMENT ON VIEW es_projection_errors IS 'The latest 100 errors of each projection, newest first.';

--
-- How things are, in sentences and in pictures.
--

CREATE FUNCTION es.settled_position() RETURNS bigint
	AS 'MODULE_PATHNAME', 'es_settled' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es.settled_position() IS 'What es_settled() returns, at a place that is known.';

CREATE FUNCTION es.state_of_projections(
	OUT name text,
	OUT owner oid,
	OUT status text,
	OUT lag bigint,
	OUT waiting interval,
	OUT error text,
	OUT sqlstate text,
	OUT error_position bigint,
	OUT letters bigint,
	OUT applied bigint,
	OUT applied_at timestamptz)
	RETURNS SETOF record
	LANGUAGE sql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
	WITH s AS MATERIALIZED (SELECT es.settled_position() AS settled),
	c AS (
		SELECT k.projection, min(k.position) AS position,
			   (array_agg(k.error ORDER BY k.error_at)
					FILTER (WHERE k.error IS NOT NULL))[1] AS error,
			   (array_agg(k.error_sqlstate ORDER BY k.error_at)
					FILTER (WHERE k.error IS NOT NULL))[1] AS sqlstate,
			   (array_agg(k.error_position ORDER BY k.error_at)
					FILTER (WHERE k.error IS NOT NULL))[1] AS error_position,
			   sum(k.events_applied)::bigint AS applied, max(k.applied_at) AS applied_at
		  FROM es.checkpoint k WHERE k.rebuild = 0 GROUP BY 1)
	SELECT p.name, p.owner::oid,
		   CASE WHEN p.paused THEN 'paused'
				WHEN es.suspended() THEN 'suspended'
				WHEN c.error IS NOT NULL THEN 'stopped'
				WHEN EXISTS (SELECT FROM es.rebuild r
							  WHERE r.projection = p.name AND r.finished_at IS NULL)
				THEN 'rebuilding'
				WHEN p.mode = 'async' AND c.position < s.settled THEN 'running'
				ELSE 'caught up' END,
		   CASE WHEN p.mode = 'async' THEN greatest(s.settled - c.position, 0) ELSE 0 END,
		   CASE WHEN p.mode = 'async' AND c.position < s.settled THEN
				clock_timestamp() - (SELECT e.recorded_at FROM es.event e
									  WHERE e.position > c.position AND e.position <= s.settled
									  ORDER BY e.position LIMIT 1) END,
		   c.error, c.sqlstate, c.error_position,
		   (SELECT count(*) FROM es.dead_letter d
			 WHERE d.projection = p.name AND d.rebuild = 0 AND d.status <> 'discarded'),
		   CASE WHEN p.mode = 'async' THEN c.applied END,
		   CASE WHEN p.mode = 'async' THEN c.applied_at END
	  FROM es.projection p JOIN c ON c.projection = p.name CROSS JOIN s
$$;
COMMENT ON FUNCTION es.state_of_projections() IS 'How each projection stands, for es_health() and es_top.';

CREATE FUNCTION es_health(OUT ok boolean, OUT problems text[]) RETURNS record
	LANGUAGE sql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
	WITH projections AS MATERIALIZED (SELECT * FROM es.state_of_projections()),
	workers AS MATERIALIZED (SELECT * FROM es.stat_worker()),
	wrong (n, sentence) AS (
		SELECT 1, 'This database is a copy: its workers wait for es_activate().'
		 WHERE es.suspended()
		UNION ALL
		SELECT 2, 'The es launcher does not run.'
		 WHERE NOT EXISTS (SELECT FROM workers WHERE kind = 'launcher') AND NOT pg_is_in_recovery()
		UNION ALL
		SELECT 3, 'No es scheduler serves this database.'
		 WHERE NOT EXISTS (SELECT FROM workers WHERE kind = 'scheduler') AND NOT pg_is_in_recovery()
		   AND EXISTS (SELECT FROM es.event)
		UNION ALL
		SELECT 4, format('Projection "%s" has stopped at position %s: %s.', name, error_position, error)
		  FROM projections WHERE error IS NOT NULL
		UNION ALL
		SELECT 5, format('Projection "%s" is %s events and %s seconds behind.',
						 name, lag, round(EXTRACT(epoch FROM waiting)))
		  FROM projections
		 WHERE status IN ('running', 'rebuilding') AND waiting > interval '60 s'
		UNION ALL
		SELECT 6, format('No projector runs for projection "%s" of role %s%s.', p.name, p.owner::regrole,
						 CASE WHEN r.rolcanlogin OR current_setting('server_version_num')::int >= 170000
							  THEN '' ELSE ', which cannot log in' END)
		  FROM projections p LEFT JOIN pg_roles r ON r.oid = p.owner
		 WHERE p.status IN ('running', 'rebuilding') AND p.waiting > interval '10 s'
		   AND NOT EXISTS (SELECT FROM workers w WHERE w.kind = 'projector' AND w.role = p.owner)
		UNION ALL
		SELECT 7, format('Projection "%s" has %s dead letters.', name, letters)
		  FROM projections WHERE letters > 0
		UNION ALL
		SELECT 8, format('The rebuild of projection "%s" has stopped: %s.', r.projection, max(c.error))
		  FROM es.rebuild r JOIN es.checkpoint c ON c.rebuild = r.id AND c.error IS NOT NULL
		 WHERE r.finished_at IS NULL GROUP BY r.projection
		UNION ALL
		SELECT 9, format('Process %s holds the settled position back before position %s since %s seconds.',
						 s.pid, s.first_position,
						 round(EXTRACT(epoch FROM clock_timestamp() - a.xact_start)))
		  FROM es.stat_append() s JOIN pg_stat_activity a ON a.pid = s.pid
		 WHERE a.xact_start < clock_timestamp() - interval '60 s'
		UNION ALL
		SELECT 10, format('New events cannot be announced since %s seconds: %s.',
						  round(EXTRACT(epoch FROM clock_timestamp() - failing_since)), error)
		  FROM es.announced WHERE failing_since IS NOT NULL
		UNION ALL
		SELECT 11, format('The queue of notifications is full to %s%%: a listener sleeps in a transaction.',
						  round(usage * 100))
		  FROM pg_notification_queue_usage() usage WHERE usage > 0.5
		UNION ALL
		SELECT 12, format('Subscription "%s" has %s parked events.', subscription, count(*))
		  FROM es.subscription_dead_letter GROUP BY subscription)
	SELECT count(*) = 0, coalesce(array_agg(sentence ORDER BY n, sentence), '{}') FROM wrong
$$;
COMMENT ON FUNCTION es_health() IS
	'One row: whether all is well, and what is not, in sentences.';

-- As wide as a terminal of 80 columns has room for, where names are short and
-- all is well.
CREATE FUNCTION es.top(
	OUT projection text,
	OUT status text,
	OUT behind text,
	OUT lag bigint,
	OUT seconds numeric,
	OUT applied bigint,
	OUT remark text)
	RETURNS SETOF record
	LANGUAGE sql VOLATILE SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
	SELECT s.name, s.status,
		   rpad(repeat('#', least(ceil(log(5, s.lag + 1))::int, 10)), 10, '.'),
		   s.lag, round(coalesce(EXTRACT(epoch FROM s.waiting), 0), 1), s.applied,
		   concat_ws(', ', s.sqlstate,
			   CASE WHEN s.letters > 0 THEN s.letters || ' dead' END,
			   (SELECT format(CASE s.status WHEN 'rebuilding' THEN '%s%%' ELSE 'rebuilt to %s%%' END,
							  trunc(100.0 * (min(c.position) - r.start_after)
								/ greatest(es.settled_position() - r.start_after, 1)))
				  FROM es.rebuild r JOIN es.checkpoint c ON c.rebuild = r.id
				 WHERE r.projection = s.name AND r.finished_at IS NULL GROUP BY r.id))
	  FROM es.state_of_projections() s
	 ORDER BY s.lag DESC, s.name
$$;
COMMENT ON FUNCTION es.top() IS 'What es_top shows.';

CREATE VIEW es_top AS
	SELECT t.projection, t.status, t.behind, t.lag, t.seconds, t.applied, t.remark
	  FROM es.top() t;
COMMENT ON VIEW es_top IS
	'For \watch 1: a line for each projection, the one furthest behind first; each mark of the bar stands for five times as many events as the one before; the remark is the SQLSTATE of what stopped it, dead letters, how far a rebuild is.';

CREATE VIEW es_commands AS
	SELECT name, category, event_type, validate, decide, creates, payload_type,
		   owner::pg_catalog.text AS owner,
		   (SELECT pg_catalog.array_agg(g.grantee::pg_catalog.text
										ORDER BY g.grantee::pg_catalog.text)
			  FROM es.command_grant g
			 WHERE g.command OPERATOR(pg_catalog.=) name) AS granted_to,
		   created_at, search_path
	  FROM es.command_type;
COMMENT ON VIEW es_commands IS
	'The commands that es_submit() accepts, and who may submit them besides their owners and the writers.';

CREATE VIEW es_aggregates AS
	SELECT a.category, a.evolve, a.initial_state, a.snapshot_every,
		   (SELECT pg_catalog.array_agg(c.name ORDER BY c.name)
			  FROM es.command_type c
			 WHERE c.category OPERATOR(pg_catalog.=) a.category) AS commands,
		   s.snapshots, s.last_snapshot_at,
		   a.owner::pg_catalog.text AS owner, a.created_at, a.search_path
	  FROM es.aggregate a
	 CROSS JOIN LATERAL (
		SELECT pg_catalog.count(*) AS snapshots, pg_catalog.max(s.taken_at) AS last_snapshot_at
		  FROM es.snapshot s
		 WHERE s.stream OPERATOR(pg_catalog.=) a.category
			OR (s.stream OPERATOR(pg_catalog.>=) (a.category OPERATOR(pg_catalog.||) '-')
				AND s.stream OPERATOR(pg_catalog.<) (a.category OPERATOR(pg_catalog.||) '.'))) s;
COMMENT ON VIEW es_aggregates IS
	'The aggregates: how events become a state, their commands and snapshots.';

CREATE VIEW es_schedules AS
	SELECT s.id, s.command, s.aggregate_id, s.due,
		   CASE WHEN s.next_at IS NULL THEN 'failed'
				WHEN s.attempts OPERATOR(pg_catalog.>) 0 THEN 'retrying'
				ELSE 'pending'
		   END AS status,
		   s.next_at AS next_attempt_at, s.attempts,
		   s.error AS last_error, s.error_sqlstate AS last_error_sqlstate,
		   s.error_at AS last_error_at,
		   s.owner::pg_catalog.text AS owner, s.created_at, s.payload, s.metadata
	  FROM es.schedule s
	 WHERE pg_catalog.pg_has_role(s.owner, 'USAGE')
	 ORDER BY s.due;
COMMENT ON VIEW es_schedules IS
	'Scheduled commands, of the roles that one can act as: what is pending, and what failed and why.';

--
-- Rights: GRANT on the right objects, by the name of a job.
--

-- What es_grant() gave to whom: two kinds of rights share objects, and taking
-- one back must not take from the other.
CREATE TABLE es.role_grant (
	grantee		regrole NOT NULL,
	kind		text COLLATE pg_catalog."C" NOT NULL,
	CONSTRAINT role_grant_pkey PRIMARY KEY (grantee, kind)
);
COMMENT ON TABLE es.role_grant IS 'Who was given which kind of rights; kept by es_grant().';

-- A role that was dropped would be dumped as a number, perhaps that of another.
SELECT pg_catalog.pg_extension_config_dump('es.role_grant',
	'WHERE EXISTS (SELECT FROM pg_catalog.pg_roles r WHERE r.oid OPERATOR(pg_catalog.=) grantee)');

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
		WHEN 'reader' THEN ARRAY[
			'es_read', 'es_stream', 'es_state', 'es_read_matching', 'es_read_to',
			'es_watch_key', 'es_unwatch_key',
			'es_settled', 'es_epoch', 'es_wait', 'es_health', 'suspended', 'top', 'stat_worker']
		WHEN 'writer' THEN ARRAY[
			'es_append', 'es_append_batch', 'es_append_if', 'es_lock_matching', 'es_submit',
			'es_schedule', 'es_cancel', 'es_settled', 'es_epoch', 'es_wait']
		WHEN 'projector' THEN ARRAY[
			'es_create_projection', 'es_alter_projection', 'es_drop_projection',
			'es_pause', 'es_resume', 'es_retry', 'es_discard', 'es_rebuild', 'es_cancel_rebuild',
			'es_watch', 'es_unwatch', 'es_watch_key', 'es_unwatch_key', 'rebuilt', 'watches',
			'es_settled', 'es_epoch', 'es_wait',
			'suspended', 'batch_after', 'batch_to', 'batch_has', 'batch_event',
			'stream_partition']
		WHEN 'consumer' THEN ARRAY[
			'es_create_subscription', 'es_drop_subscription', 'es_fetch', 'es_ack',
			'es_nack', 'es_heartbeat', 'es_leave', 'es_retry_delivery',
			'es_read', 'es_settled', 'es_epoch']
	END;
	relations := CASE kind
		WHEN 'reader' THEN ARRAY[
			'event', 'tag', 'es_projections', 'es_stat_partitions', 'es_stat_rebuild',
			'es_stat_workers', 'es_top', 'es_commands', 'es_aggregates']
		WHEN 'writer' THEN ARRAY['es_commands', 'es_aggregates', 'es_schedules']
		WHEN 'projector' THEN ARRAY[
			'event', 'es_batch', 'es_projections', 'es_stat_partitions', 'es_stat_rebuild',
			'es_projection_errors', 'dead_letter', 'es_watches']
		WHEN 'consumer' THEN ARRAY[
			'event', 'es_subscriptions', 'es_dead_deliveries', 'es_channels']
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

-- As the owner of the extension: who may call this is an administrator of the
-- log, and makes others readers, writers, projectors and administrators.
CREATE FUNCTION es_grant("role" regrole, kind text) RETURNS void
	LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	r text;
BEGIN
	-- regrole takes "-" and numbers, too.
	IF NOT EXISTS (SELECT FROM pg_roles WHERE oid = "role") THEN
		RAISE EXCEPTION 'role with OID % does not exist', "role"::oid
			USING ERRCODE = 'undefined_object';
	END IF;
	FOR r IN SELECT es.rights(kind) LOOP
		EXECUTE format('GRANT %s TO %s', r, "role");
	END LOOP;
	INSERT INTO es.role_grant VALUES ("role", kind) ON CONFLICT DO NOTHING;
END
$$;
COMMENT ON FUNCTION es_grant(regrole, text) IS
	'Give a role the rights of a reader, writer, projector, consumer or admin of the log.';

CREATE FUNCTION es_revoke("role" regrole, kind text) RETURNS void
	LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
	SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	r text;
BEGIN
	DELETE FROM es.role_grant g
	 WHERE g.grantee = "role" AND g.kind = es_revoke.kind;
	FOR r IN
		SELECT es.rights(es_revoke.kind)
		EXCEPT
		SELECT es.rights(g.kind) FROM es.role_grant g WHERE g.grantee = "role"
		EXCEPT
		SELECT format('EXECUTE ON FUNCTION %s', p.oid::regprocedure)
		  FROM pg_proc p
		 WHERE p.proname = 'es_submit'
		   AND EXISTS (SELECT FROM es.command_grant c WHERE c.grantee = "role")
	LOOP
		EXECUTE format('REVOKE %s FROM %s', r, "role");
	END LOOP;
END
$$;
COMMENT ON FUNCTION es_revoke(regrole, text) IS
	'Take back what es_grant() gave, but for what another kind of rights of the role includes.';

-- PUBLIC gets nothing, whatever the default privileges of the database are.
DO $$
DECLARE
	object text;
BEGIN
	FOR object IN
		SELECT pg_catalog.format('FUNCTION %s', d.objid::pg_catalog.regprocedure)
		  FROM pg_catalog.pg_depend d
		  JOIN pg_catalog.pg_extension x ON x.oid OPERATOR(pg_catalog.=) d.refobjid
		 WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
		   AND d.deptype OPERATOR(pg_catalog.=) 'e'
		   AND x.extname OPERATOR(pg_catalog.=) 'es'
		UNION ALL
		SELECT pg_catalog.format('TABLE %s', c.oid::pg_catalog.regclass)
		  FROM pg_catalog.pg_depend d
		  JOIN pg_catalog.pg_extension x ON x.oid OPERATOR(pg_catalog.=) d.refobjid
		  JOIN pg_catalog.pg_class c ON c.oid OPERATOR(pg_catalog.=) d.objid
		 WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
		   AND d.deptype OPERATOR(pg_catalog.=) 'e'
		   AND c.relkind OPERATOR(pg_catalog.=) ANY ('{r,v,S}')
		   AND x.extname OPERATOR(pg_catalog.=) 'es'
	LOOP
		EXECUTE pg_catalog.format('REVOKE ALL ON %s FROM PUBLIC', object);
	END LOOP;
END
$$;
