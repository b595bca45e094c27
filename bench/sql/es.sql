--
-- Read models and a command for es.
--
CREATE TABLE balance (stream text COLLATE "C" PRIMARY KEY, amount bigint NOT NULL);
CREATE TABLE daily (
	category	text COLLATE "C",
	day			date,
	events		bigint NOT NULL,
	amount		bigint NOT NULL,
	PRIMARY KEY (category, day)
);

-- The same validator in either language.
CREATE FUNCTION reject(reason text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	RAISE EXCEPTION '%', reason;
END $$;
CREATE FUNCTION validate_sql(state jsonb, command es.command) RETURNS void
	LANGUAGE sql AS $$
	SELECT CASE WHEN (command.payload->>'amount')::bigint <= 0
		THEN reject('amount must be positive') END
$$;
CREATE FUNCTION validate_plpgsql(state jsonb, command es.command) RETURNS void
	LANGUAGE plpgsql AS $$
BEGIN
	IF (command.payload->>'amount')::bigint <= 0 THEN
		RAISE EXCEPTION 'amount must be positive';
	END IF;
END $$;
SELECT es_create_command('DEPOSIT_SQL', 'account', 'Deposited', 'validate_sql(jsonb, es.command)');
SELECT es_create_command('DEPOSIT_PLPGSQL', 'account', 'Deposited', 'validate_plpgsql(jsonb, es.command)');
