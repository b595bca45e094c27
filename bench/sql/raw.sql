--
-- The yardstick: what a user would write without es.  The client supplies the
-- version; nothing is checked, announced or projected.
--
CREATE TABLE raw (
	"position"	bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	version		bigint NOT NULL,
	recorded_at	timestamptz NOT NULL DEFAULT clock_timestamp(),
	id			uuid NOT NULL DEFAULT gen_random_uuid() UNIQUE,
	stream		text COLLATE "C" NOT NULL,
	category	text COLLATE "C" NOT NULL,
	type		text COLLATE "C" NOT NULL,
	payload		jsonb NOT NULL,
	metadata	jsonb,
	UNIQUE (stream, version)
);
