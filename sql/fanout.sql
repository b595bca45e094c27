--
-- Fan-out: the event bus for what lives outside the database.
--

--
-- Channels: NOTIFY with a filter
--

CREATE TABLE es.channel (
	name			text COLLATE pg_catalog."C" NOT NULL,
	categories		text[] COLLATE pg_catalog."C",
	types			text[] COLLATE pg_catalog."C",
	owner			regrole NOT NULL,
	created_at		timestamptz NOT NULL DEFAULT pg_catalog.now(),
	CONSTRAINT channel_pkey PRIMARY KEY (name)
);
COMMENT ON TABLE es.channel IS 'Definitions of channels; kept by es_create_channel().';

SELECT pg_catalog.pg_extension_config_dump('es.channel', '');

CREATE TABLE es.channel_count (
	channel			text COLLATE pg_catalog."C" NOT NULL,
	notifications	bigint NOT NULL,
	events			bigint NOT NULL,
	"position"		bigint NOT NULL,
	notified_at		timestamptz NOT NULL,
	CONSTRAINT channel_count_pkey PRIMARY KEY (channel)
) WITH (fillfactor = 50);
COMMENT ON TABLE es.channel_count IS
	'What each channel was told; kept by the scheduler. Counts from before the channel was created are those of another one.';

CREATE TABLE es.announced (
	one				boolean NOT NULL DEFAULT true,
	"position"		bigint NOT NULL,
	notifications	bigint NOT NULL DEFAULT 0,
	notified_at		timestamptz,
	failures		bigint NOT NULL DEFAULT 0,
	failed_at		timestamptz,
	failing_since	timestamptz,
	error			text,
	CONSTRAINT announced_pkey PRIMARY KEY (one),
	CONSTRAINT announced_one_row CHECK (one)
) WITH (fillfactor = 50);
COMMENT ON TABLE es.announced IS
	'One row: how far the log was announced, and how often that failed; kept by the scheduler.';
COMMENT ON COLUMN es.announced.failing_since IS 'NULL where the latest announcement has not failed.';

CREATE FUNCTION es_create_channel(
	name text,
	categories text[] DEFAULT NULL,
	types text[] DEFAULT NULL)
	RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_create_channel(text, text[], text[]) IS
	'Announce events of some categories and types (NULL: all) on a channel: {"epoch":..., "from":..., "position":..., "count":...}.';

CREATE FUNCTION es_drop_channel(name text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_drop_channel(text) IS 'Announce nothing on a channel any more.';

CREATE FUNCTION es.notify_failures() RETURNS bigint
	AS 'MODULE_PATHNAME', 'es_notify_failures' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es.notify_failures() IS
	'How often an announcement failed, for example for a full queue, and was made up for later.';

CREATE VIEW es_channels AS
	SELECT 'es'::pg_catalog.text COLLATE pg_catalog."C" AS name, NULL::pg_catalog.text AS owner,
		   NULL::pg_catalog.text[] AS categories, NULL::pg_catalog.text[] AS types,
		   COALESCE(a.notifications, 0) AS notifications, NULL::pg_catalog.int8 AS events,
		   a."position", a.notified_at,
		   COALESCE(a.failures, 0) AS failures, a.failed_at, a.error AS last_error
	  FROM (VALUES (true)) v (one)
	  LEFT JOIN es.announced a ON a.one
	UNION ALL
	SELECT c.name, c.owner::pg_catalog.text, c.categories, c.types,
		   COALESCE(n.notifications, 0), COALESCE(n.events, 0),
		   n."position", n.notified_at,
		   COALESCE(a.failures, 0), a.failed_at, a.error
	  FROM es.channel c
	  LEFT JOIN es.channel_count n ON n.channel OPERATOR(pg_catalog.=) c.name
	   AND n.notified_at OPERATOR(pg_catalog.>=) c.created_at
	  LEFT JOIN es.announced a ON a.one;
COMMENT ON VIEW es_channels IS
	'The channels, what each was told, and how often announcements failed: all channels share one transaction, so the failures too.';

--
-- Subscriptions: durable consumers outside the database
--

CREATE TABLE es.subscription (
	name			text COLLATE pg_catalog."C" NOT NULL,
	owner			regrole NOT NULL,
	categories		text[] COLLATE pg_catalog."C",
	types			text[] COLLATE pg_catalog."C",
	partitions		integer NOT NULL,
	start_after		bigint NOT NULL,
	max_deliveries	integer NOT NULL,
	created_at		timestamptz NOT NULL DEFAULT pg_catalog.now(),
	CONSTRAINT subscription_pkey PRIMARY KEY (name)
);
COMMENT ON TABLE es.subscription IS 'Definitions of subscriptions; kept by es_create_subscription().';

CREATE TABLE es.subscription_partition (
	subscription	text COLLATE pg_catalog."C" NOT NULL,
	partition		integer NOT NULL,
	"position"		bigint NOT NULL,
	delivered		bigint NOT NULL,
	handed_out		bigint NOT NULL,
	attempts		integer NOT NULL DEFAULT 0,
	batch			integer NOT NULL DEFAULT 0,
	failing			bigint,
	failures		integer NOT NULL DEFAULT 0,
	error			text,
	retry_at		timestamptz,
	consumer		text COLLATE pg_catalog."C",
	lease_until		timestamptz,
	redeliveries	bigint NOT NULL DEFAULT 0,
	CONSTRAINT subscription_partition_pkey PRIMARY KEY (subscription, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE es.subscription_partition IS
	'How far each partition of a subscription is handled, and who holds it.';
COMMENT ON COLUMN es.subscription_partition."position" IS
	'All events up to here are acknowledged, parked, or not of this partition.';
COMMENT ON COLUMN es.subscription_partition.delivered IS
	'Up to here the consumer was given events by its last es_fetch(); those behind position wait for es_ack().';
COMMENT ON COLUMN es.subscription_partition.handed_out IS
	'Events up to here were given to some consumer before.';
COMMENT ON COLUMN es.subscription_partition.attempts IS
	'How often the first event behind position was handed out without any progress.';
COMMENT ON COLUMN es.subscription_partition.batch IS
	'Events handed out last; halved while there is no progress, to find the one that fails.';
COMMENT ON COLUMN es.subscription_partition.failing IS
	'The event that was given back last with es_nack(), failures times.';

-- Consumers are known for as long as their last lease; not dumped.
CREATE TABLE es.subscription_consumer (
	subscription	text COLLATE pg_catalog."C" NOT NULL,
	consumer		text COLLATE pg_catalog."C" NOT NULL,
	active_until	timestamptz NOT NULL,
	unacknowledged	integer[] NOT NULL DEFAULT '{}',
	CONSTRAINT subscription_consumer_pkey PRIMARY KEY (subscription, consumer),
	CONSTRAINT subscription_consumer_fkey FOREIGN KEY (subscription)
		REFERENCES es.subscription (name) ON DELETE CASCADE
) WITH (fillfactor = 50);
COMMENT ON TABLE es.subscription_consumer IS
	'The consumers of each subscription, and the partitions in which each has events to acknowledge.';

CREATE TABLE es.subscription_dead_letter (
	subscription	text COLLATE pg_catalog."C" NOT NULL,
	"position"		bigint NOT NULL,
	partition		integer NOT NULL,
	stream			text COLLATE pg_catalog."C" NOT NULL,
	status			text NOT NULL,
	deliveries		integer NOT NULL,
	error			text,
	parked_at		timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),
	CONSTRAINT subscription_dead_letter_pkey PRIMARY KEY (subscription, "position"),
	CONSTRAINT subscription_dead_letter_status
		CHECK (status IN ('parked', 'behind', 'retry', 'delivered'))
);
COMMENT ON TABLE es.subscription_dead_letter IS
	'Events that no consumer could handle, and those of their streams behind them.';
COMMENT ON COLUMN es.subscription_dead_letter.status IS
	'parked: it failed; behind: an earlier event of its stream did; retry: es_retry_delivery() was called; delivered: and it was handed out.';

SELECT pg_catalog.pg_extension_config_dump('es.subscription', '');
SELECT pg_catalog.pg_extension_config_dump('es.subscription_partition', '');
SELECT pg_catalog.pg_extension_config_dump('es.subscription_dead_letter', '');

CREATE FUNCTION es_create_subscription(
	name text,
	categories text[] DEFAULT NULL,
	types text[] DEFAULT NULL,
	partitions integer DEFAULT 1,
	start_after bigint DEFAULT 0,
	max_deliveries integer DEFAULT 5)
	RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_create_subscription(text, text[], text[], integer, bigint, integer) IS
	'Keep the place of consumers in the log: events of some categories and types (NULL: all) behind a position, split by stream into partitions.';

CREATE FUNCTION es_drop_subscription(name text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_drop_subscription(text) IS 'Forget a subscription and its place in the log.';

CREATE FUNCTION es_fetch(
	subscription text,
	consumer text,
	max_count integer DEFAULT 100,
	lease interval DEFAULT '30 s',
	wait interval DEFAULT '0',
	OUT partition integer,
	OUT "position" bigint,
	OUT version bigint,
	OUT recorded_at timestamptz,
	OUT stream text,
	OUT category text,
	OUT type text,
	OUT payload jsonb,
	OUT metadata jsonb,
	OUT deliveries integer)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE ROWS 100;
COMMENT ON FUNCTION es_fetch(text, text, integer, interval, interval) IS
	'The next events for a consumer, which holds their partitions until the lease ends; waits for some if there are none. Events not acknowledged are handed out again.';

CREATE FUNCTION es_ack(
	subscription text,
	consumer text,
	"position" bigint,
	partition integer DEFAULT NULL)
	RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_ack(text, text, bigint, integer) IS
	'The consumer has handled all it was given up to a position (of one partition, if named). ES005 where it has lost a partition.';

CREATE FUNCTION es_nack(
	subscription text,
	consumer text,
	"position" bigint,
	reason text DEFAULT NULL,
	delay interval DEFAULT '0')
	RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_nack(text, text, bigint, text, interval) IS
	'The consumer could not handle the event at a position: it and those behind it in its partition are handed out again after a delay.';

CREATE FUNCTION es_heartbeat(
	subscription text,
	consumer text,
	lease interval DEFAULT '30 s')
	RETURNS integer
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_heartbeat(text, text, interval) IS
	'Extend the leases of a consumer: how many partitions it holds. ES005 where it has lost one with events to acknowledge.';

CREATE FUNCTION es_leave(subscription text, consumer text) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_leave(text, text) IS
	'Give back the partitions of a consumer that stops, so that nobody has to wait for its leases to end.';

CREATE FUNCTION es_retry_delivery(subscription text, "position" bigint) RETURNS integer
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_retry_delivery(text, bigint) IS
	'Hand a parked event out again, and then those of its stream behind it: how many they are.';

CREATE VIEW es_subscriptions AS
	SELECT s.name, s.owner::pg_catalog.text AS owner, p.partition, p.consumer, p."position",
		   w."position" AS settled_position,
		   GREATEST(w."position" OPERATOR(pg_catalog.-) p."position", 0) AS lag_events,
		   p.lease_until,
		   CASE WHEN p.delivered OPERATOR(pg_catalog.>) p."position" THEN p.delivered END AS delivered_position,
		   p.redeliveries,
		   (SELECT pg_catalog.count(*) FROM es.subscription_dead_letter d
			 WHERE d.subscription OPERATOR(pg_catalog.=) s.name
			   AND d.partition OPERATOR(pg_catalog.=) p.partition) AS parked_events,
		   p.failing AS last_error_position, p.error AS last_error, p.retry_at,
		   s.categories, s.types, s.partitions, s.max_deliveries
	  FROM es.subscription s
	  JOIN es.subscription_partition p ON p.subscription OPERATOR(pg_catalog.=) s.name
	 CROSS JOIN (SELECT es_settled() AS "position") w;
COMMENT ON VIEW es_subscriptions IS
	'The partitions of each subscription: who holds them until when, how far they are and how far behind.';

CREATE VIEW es_dead_deliveries AS
	SELECT d.subscription, d."position", d.partition, d.stream, e.version, e.type,
		   d.status, d.deliveries, d.error, d.parked_at
	  FROM es.subscription_dead_letter d
	  JOIN es.event e ON e."position" OPERATOR(pg_catalog.=) d."position";
COMMENT ON VIEW es_dead_deliveries IS
	'Events that no consumer could handle, and those that wait behind them; es_retry_delivery() hands them out again.';

--
-- Watches: which keys of a read model have changed
--

-- Written by the transactions that change watched tables, read and emptied by
-- the scheduler.  After a crash there are no listeners to tell either.
CREATE UNLOGGED TABLE es.change (
	relation		oid NOT NULL,
	rebuilt			boolean NOT NULL,
	channel			text COLLATE pg_catalog."C",
	keys			jsonb
) WITH (autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);
COMMENT ON TABLE es.change IS
	'Changes of watched tables that are still to be announced; keys NULL stands for many.';

CREATE UNLOGGED TABLE es.watched_key (
	relation		oid NOT NULL,
	key				jsonb NOT NULL,
	pid				integer NOT NULL,
	backend_start	timestamptz NOT NULL,
	channel			text COLLATE pg_catalog."C" NOT NULL,
	CONSTRAINT watched_key_pkey PRIMARY KEY (relation, key, channel)
);
COMMENT ON TABLE es.watched_key IS
	'Keys that sessions watch; the scheduler removes those of sessions that have ended.';

CREATE FUNCTION es.watch_changed() RETURNS trigger
	AS 'MODULE_PATHNAME', 'es_watch_changed' LANGUAGE C;
COMMENT ON FUNCTION es.watch_changed() IS
	'Trigger of a watched table: keeps the keys that a statement has changed. Its arguments are the channel and the key columns.';

CREATE FUNCTION es_watch(
	read_model regclass,
	key_columns text[],
	channel text DEFAULT NULL)
	RETURNS text
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_watch(regclass, text[], text) IS
	'Announce the keys of a table that change on a channel, by default that of the table''s name, which is returned.';

CREATE FUNCTION es_unwatch(read_model regclass) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_unwatch(regclass) IS 'Announce changes of a table no more.';

CREATE FUNCTION es_watch_key(read_model regclass, key jsonb) RETURNS text
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_watch_key(regclass, jsonb) IS
	'Announce changes of one key of a watched table to this session: the channel to LISTEN on, the same for all its keys, until the session ends.';

CREATE FUNCTION es_unwatch_key(read_model regclass, key jsonb) RETURNS void
	AS 'MODULE_PATHNAME' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es_unwatch_key(regclass, jsonb) IS
	'Announce changes of one key to this session no more.';

CREATE FUNCTION es.rebuilt(read_model regclass) RETURNS void
	AS 'MODULE_PATHNAME', 'es_rebuilt' LANGUAGE C VOLATILE PARALLEL UNSAFE;
COMMENT ON FUNCTION es.rebuilt(regclass) IS
	'Announce that a watched table was built anew, for who swaps its contents past its triggers.';

-- The triggers are the definitions: they go with the table into a dump.
CREATE FUNCTION es.watches(
	OUT read_model regclass,
	OUT key_columns text[],
	OUT channel text)
	RETURNS SETOF record
	AS 'MODULE_PATHNAME', 'es_watches' LANGUAGE C VOLATILE PARALLEL RESTRICTED;
COMMENT ON FUNCTION es.watches() IS 'The tables that es_watch() watches.';

CREATE VIEW es_watches AS
	SELECT w.read_model, w.key_columns, w.channel,
		   (SELECT pg_catalog.count(DISTINCT k.channel)
			  FROM es.watched_key k
			  JOIN pg_catalog.pg_stat_get_activity(NULL) a
				ON a.pid OPERATOR(pg_catalog.=) k.pid
			   AND a.backend_start OPERATOR(pg_catalog.=) k.backend_start
			 WHERE k.relation OPERATOR(pg_catalog.=) w.read_model::pg_catalog.oid) AS sessions
	  FROM es.watches() w;
COMMENT ON VIEW es_watches IS
	'The watched tables, the channel of each, and how many sessions watch keys of it.';
