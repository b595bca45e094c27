--
-- Validators: functions (jsonb, es.command) that raise to reject a command.
--

-- What a statement gives, or the error that it raises.
CREATE FUNCTION pg_temp.try(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	result text;
	message text;
	detail text;
	hint text;
BEGIN
	EXECUTE statement INTO result;
	RETURN result;
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS message = MESSAGE_TEXT, detail = PG_EXCEPTION_DETAIL,
		hint = PG_EXCEPTION_HINT;
	RETURN format(E'%s: %s\n  detail: %s\n  hint: %s', SQLSTATE, message, detail, hint);
END
$$;
\pset format unaligned
\pset tuples_only on

--
-- What a validator is given
--

CREATE TABLE validators_given AS SELECT NULL::jsonb AS state, NULL::es.command AS command LIMIT 0;
CREATE FUNCTION validators_record(state jsonb, command es.command) RETURNS void
LANGUAGE sql AS 'INSERT INTO validators_given VALUES (state, command)';
SELECT es_create_command('validators_record', 'validators', 'RECORDED',
						 validate => 'validators_record(jsonb, es.command)');
SELECT version, events, duplicate
  FROM es_submit('validators_record', '1-a', '{"n": 1}');
SELECT version, events, duplicate
  FROM es_submit('validators_record', '1-a', '{"n": 2}',
				 command_id => '00000000-0000-0000-0000-00000000a001', metadata => '{"user": "ann"}');
-- A repetition is not validated again.
SELECT version, events, duplicate
  FROM es_submit('validators_record', '1-a', '{"n": 2}',
				 command_id => '00000000-0000-0000-0000-00000000a001', metadata => '{"user": "ann"}');
SELECT g.state, (g.command).name, (g.command).id, (g.command).stream, (g.command).version,
	   (g.command).payload, (g.command).metadata, (g.command).command_id,
	   (g.command).submitted_by = current_user AS submitted_by_me,
	   (g.command).submitted_at BETWEEN transaction_timestamp() - interval '1 hour' AND clock_timestamp() AS in_time
  FROM validators_given g ORDER BY (g.command).version;

--
-- What becomes a rejection
--

CREATE FUNCTION validators_raise(state jsonb, command es.command) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
	n integer;
BEGIN
	CASE command.payload->>'how'
		WHEN 'plainly' THEN RAISE EXCEPTION 'not like this';
		WHEN 'in full' THEN RAISE EXCEPTION 'credit limit exceeded'
			USING DETAIL = 'The limit is 100.', HINT = 'Pay first.';
		WHEN 'class of its own' THEN RAISE EXCEPTION 'too late' USING ERRCODE = 'SHOP1';
		WHEN 'assertion' THEN ASSERT false, 'that cannot be';
		WHEN 'division' THEN n := 1 / 0;
		WHEN 'constraint' THEN INSERT INTO validators_limits VALUES (-1);
		WHEN 'missing row' THEN SELECT amount INTO STRICT n FROM validators_limits WHERE amount = 7;
		WHEN 'missing table' THEN PERFORM 1 FROM validators_no_such_table;
		WHEN 'serialization' THEN RAISE serialization_failure;
		ELSE NULL;
	END CASE;
END
$$;
CREATE TABLE validators_limits (amount integer CHECK (amount > 0));
SELECT es_create_command('validators_raise', 'validators', 'RAISED',
						 validate => 'validators_raise(jsonb, es.command)');
CREATE FUNCTION pg_temp.raise(how text) RETURNS text LANGUAGE sql AS $$
	SELECT pg_temp.try(format('SELECT version FROM es_submit(%L, %L, %L)',
							  'validators_raise', '2', jsonb_build_object('how', how)))
$$;
SELECT pg_temp.raise('not at all');
-- In the validator's words, with a detail and a hint where it gave none.
SELECT pg_temp.raise('plainly');
SELECT pg_temp.raise('in full');
SELECT pg_temp.raise('class of its own');
SELECT pg_temp.raise('assertion');
SELECT pg_temp.raise('division');
SELECT pg_temp.raise('constraint');
-- A bug of the validator, or a reason to retry, is no rejection.
SELECT pg_temp.raise('missing row');
SELECT pg_temp.raise('missing table');
SELECT pg_temp.raise('serialization');
SELECT count(*) FROM es_stream('validators-2');

--
-- One execution has nothing to do with the next
--

-- An error that left an SQL function in the middle of its statements.
CREATE FUNCTION validators_divide(state jsonb, command es.command) RETURNS void
LANGUAGE sql AS $$
	SELECT 1 / (command.payload->>'divisor')::integer;
	SELECT pg_sleep(0);
$$;
SELECT es_create_command('validators_divide', 'validators', 'DIVIDED',
						 validate => 'validators_divide(jsonb, es.command)');
BEGIN;
SELECT version FROM es_submit('validators_divide', '3', '{"divisor": 1}');
SELECT pg_temp.try($$SELECT version FROM es_submit('validators_divide', '3', '{"divisor": 0}')$$);
SELECT version FROM es_submit('validators_divide', '3', '{"divisor": 1}');
SELECT pg_temp.try($$SELECT version FROM es_submit('validators_divide', '3', '{"divisor": 0}')$$);
SELECT version FROM es_submit('validators_divide', '3', '{"divisor": 1}');
COMMIT;

--
-- A validator looks and raises; it submits and appends nothing, not even when it
-- catches the error.
--
CREATE FUNCTION validators_descend(state jsonb, command es.command) RETURNS void
LANGUAGE sql AS $$
	SELECT events FROM es_submit(command.name, command.id || 'x');
$$;
SELECT es_create_command('validators_descend', 'validators', 'DESCENDED',
						 validate => 'validators_descend(jsonb, es.command)');
SELECT pg_temp.try($$SELECT version FROM es_submit('validators_descend', '4')$$);

CREATE FUNCTION validators_meddle(state jsonb, command es.command) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	BEGIN
		PERFORM es_append(command.stream, 'MEDDLED');
	EXCEPTION WHEN object_not_in_prerequisite_state THEN
		RAISE NOTICE '%', SQLERRM;
	END;
	PERFORM es_append('validators-other', 'NOTED');
END
$$;
SELECT es_create_command('validators_meddle', 'validators', 'MEDDLED_WITH',
						 validate => 'validators_meddle(jsonb, es.command)');
SELECT pg_temp.try($$SELECT version FROM es_submit('validators_meddle', '5')$$);
SELECT count(*) FROM es.event WHERE type IN ('DESCENDED', 'MEDDLED', 'NOTED', 'MEDDLED_WITH');
-- Nor does the refusal outlive the command.
SELECT version FROM es_append('validators-5', 'AFTERWARDS');
--
-- Changes between two commands of one session
--

CREATE FUNCTION validators_change(state jsonb, command es.command) RETURNS void
LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'version 1'; END$$;
SELECT es_create_command('validators_change', 'validators', 'CHANGED',
						 validate => 'validators_change(jsonb, es.command)');
SELECT pg_temp.try($$SELECT version FROM es_submit('validators_change', '6')$$);
CREATE OR REPLACE FUNCTION validators_change(state jsonb, command es.command) RETURNS void
LANGUAGE sql AS $$SELECT (1 / 0)$$;
CREATE OR REPLACE FUNCTION validators_change(state jsonb, command es.command) RETURNS void
LANGUAGE plpgsql AS $$BEGIN RAISE EXCEPTION 'version 2'; END$$;
SELECT pg_temp.try($$SELECT version FROM es_submit('validators_change', '6')$$);
BEGIN;
CREATE OR REPLACE FUNCTION validators_change(state jsonb, command es.command) RETURNS void
LANGUAGE plpgsql AS $$BEGIN END$$;
SELECT version FROM es_submit('validators_change', '6');
ROLLBACK;
SELECT pg_temp.try($$SELECT version FROM es_submit('validators_change', '6')$$);
DROP FUNCTION validators_change;
SELECT pg_temp.try($$SELECT version FROM es_submit('validators_change', '6')$$);
CREATE FUNCTION validators_change(state jsonb, command es.command) RETURNS void
LANGUAGE plpgsql AS $$BEGIN END$$;
SELECT version FROM es_submit('validators_change', '6');

--
-- Rights
--

CREATE ROLE regress_es_clerk;
CREATE ROLE regress_es_auditor;
SELECT es_grant('regress_es_clerk', 'writer');
SELECT es_grant('regress_es_auditor', 'writer');
CREATE TABLE validators_vault (secret text);
INSERT INTO validators_vault VALUES ('gold');
GRANT SELECT ON validators_vault TO regress_es_auditor;

-- As the caller, or as the definer where it is so declared.
CREATE FUNCTION validators_invoker(state jsonb, command es.command) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
	RAISE NOTICE 'as %, submitted by %', current_user, command.submitted_by;
	PERFORM secret FROM validators_vault;
END
$$;
CREATE FUNCTION validators_definer(state jsonb, command es.command) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
	RAISE NOTICE 'as %, submitted by %, search_path %', current_user, command.submitted_by,
		current_setting('search_path');
	PERFORM secret FROM validators_vault;
END
$$;
ALTER FUNCTION validators_definer(jsonb, es.command) OWNER TO regress_es_auditor;
SELECT es_create_command('validators_invoker', 'validators', 'VALIDATED',
						 validate => 'validators_invoker(jsonb, es.command)');
SELECT es_create_command('validators_definer', 'validators', 'VALIDATED',
						 validate => 'validators_definer(jsonb, es.command)');
SET ROLE regress_es_clerk;
SELECT pg_temp.try($$SELECT version FROM es_submit('validators_invoker', '7')$$);
SELECT version FROM es_submit('validators_definer', '7');
SET ROLE regress_es_auditor;
SELECT version FROM es_submit('validators_invoker', '7');
SELECT version FROM es_submit('validators_definer', '7');
RESET ROLE;

-- The caller must be allowed to call it, and so must who creates the command.
REVOKE EXECUTE ON FUNCTION validators_definer FROM PUBLIC;
SET ROLE regress_es_clerk;
SELECT pg_temp.try($$SELECT version FROM es_submit('validators_definer', '7')$$);
RESET ROLE;
GRANT EXECUTE ON FUNCTION es_create_command TO regress_es_clerk;
SET ROLE regress_es_clerk;
SELECT pg_temp.try($$SELECT es_create_command('validators_clerk', 'validators', 'E',
	validate => 'validators_definer(jsonb, es.command)')$$);
RESET ROLE;

DROP FUNCTION validators_record, validators_raise, validators_divide, validators_descend,
	validators_meddle, validators_change, validators_invoker, validators_definer;
DROP TABLE validators_given, validators_limits, validators_vault;
DROP OWNED BY regress_es_clerk, regress_es_auditor;
DROP ROLE regress_es_clerk, regress_es_auditor;
SELECT count(es_drop_command(name)::text) FROM es_commands WHERE category = 'validators';
SET es.allow_destructive = on;
DELETE FROM es.event WHERE category = 'validators';
DELETE FROM es.command_log WHERE command LIKE 'validators%';
