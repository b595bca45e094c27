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
COMMENT ON TABLE es.channel_count IS 'What each channel was told; kept by the scheduler.';

CREATE TABLE es.announced (
	one				boolean NOT NULL DEFAULT true,
	"position"		bigint NOT NULL,
	notifications	bigint NOT NULL DEFAULT 0,
	notified_at		timestamptz,
	failures		bigint NOT NULL DEFAULT 0,
	failed_at		timestamptz,
	error			text,
	CONSTRAINT announced_pkey PRIMARY KEY (one),
	CONSTRAINT announced_one_row CHECK (one)
) WITH (fillfactor = 50);
COMMENT ON TABLE es.announced IS
	'One row: how far the log was announced, and how often that failed; kept by the scheduler.';

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
	  LEFT JOIN es.announced a ON a.one;
COMMENT ON VIEW es_channels IS
	'The channels, what each was told, and how often announcements failed: all channels share one transaction, so the failures too.';
