--
-- Other ways to get order, versions, announcements or read models, each as it
-- is commonly written.
--

-- A balance kept by a row trigger.
CREATE TABLE triggered (LIKE raw INCLUDING ALL);
CREATE TABLE triggered_balance (stream text COLLATE "C" PRIMARY KEY, amount bigint NOT NULL);
CREATE FUNCTION keep_balance() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO triggered_balance VALUES (new.stream, (new.payload->>'amount')::bigint)
	ON CONFLICT (stream) DO UPDATE SET amount = triggered_balance.amount + excluded.amount;
	RETURN NULL;
END $$;
CREATE TRIGGER keep_balance AFTER INSERT ON triggered
	FOR EACH ROW EXECUTE FUNCTION keep_balance();

-- A row for each stream that holds its version.
CREATE TABLE raw_stream (stream text COLLATE "C" PRIMARY KEY, version bigint NOT NULL);
INSERT INTO raw_stream VALUES ('account-1', 0);

-- Order by transaction id: readers stop below pg_snapshot_xmin().
CREATE TABLE xid_stream (stream text COLLATE "C" PRIMARY KEY, version bigint NOT NULL);
CREATE TABLE xid_event (LIKE raw INCLUDING ALL,
	transaction_id xid8 NOT NULL DEFAULT pg_current_xact_id());
CREATE INDEX ON xid_event (transaction_id, "position");
CREATE FUNCTION xid_append(stream text, type text, payload jsonb) RETURNS bigint
	LANGUAGE plpgsql AS $$
DECLARE
	v bigint;
BEGIN
	INSERT INTO xid_stream AS s VALUES (xid_append.stream, 1)
	ON CONFLICT ON CONSTRAINT xid_stream_pkey DO UPDATE SET version = s.version + 1
	RETURNING s.version INTO v;
	INSERT INTO xid_event (version, stream, category, type, payload)
	VALUES (v, xid_append.stream, split_part(xid_append.stream, '-', 1),
		xid_append.type, xid_append.payload);
	RETURN v;
END $$;
CREATE FUNCTION xid_append_notify(stream text, type text, payload jsonb) RETURNS bigint
	LANGUAGE plpgsql AS $$
DECLARE
	v bigint := xid_append(stream, type, payload);
BEGIN
	NOTIFY raw;
	RETURN v;
END $$;
