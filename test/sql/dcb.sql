--
-- The examples of dcb.events, feature by feature, each decided in the server
-- over a query across streams.  t/070_conditions.pl has 8 writers at once.
--
-- A decision reads what it depends on by es_lock_matching() and returns events
-- with the tags by which the next one finds them.
--

-- What became of a command: the events that it led to, or why there are none.
CREATE FUNCTION dcb_try(command text, id text, payload jsonb DEFAULT '{}') RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
	result record;
BEGIN
	SELECT * INTO result FROM es_submit(command, id, payload);
	RETURN coalesce((SELECT string_agg(type || ' ' || e.payload, ', ' ORDER BY "position") FROM es.event e
					  WHERE "position" > result."position" - result.events
						AND "position" <= result."position"), 'nothing to do');
EXCEPTION WHEN SQLSTATE 'ES002' THEN
	RETURN 'rejected: ' || SQLERRM;
END
$$;
-- As if all of the log had been written so much earlier.
CREATE FUNCTION dcb_pass(time_passed interval) RETURNS void LANGUAGE plpgsql
SET es.allow_destructive = on AS $$
BEGIN
	UPDATE es.event SET recorded_at = recorded_at - time_passed WHERE category LIKE 'dcb%';
END
$$;
-- What matches an item, and an event to return.
CREATE FUNCTION dcb_lock(VARIADIC tags text[]) RETURNS SETOF es.event LANGUAGE sql AS $$
	SELECT * FROM es_lock_matching(jsonb_build_object('items',
		(SELECT jsonb_agg(jsonb_build_object('tags', jsonb_build_array(t))) FROM unnest(tags) t)))
$$;
CREATE FUNCTION dcb_event(type text, payload jsonb, VARIADIC tags text[]) RETURNS es.new_event
LANGUAGE sql AS $$ SELECT ROW(type, payload, NULL, tags, NULL)::es.new_event $$;
\pset format unaligned
\pset tuples_only on

--
-- Course subscriptions: a course is defined once and has a capacity, and a
-- student is in at most 3 courses, in each once.
--
CREATE FUNCTION dcb_course(state jsonb, c es.command) RETURNS SETOF es.new_event
LANGUAGE plpgsql AS $$
DECLARE
	course text := 'course:' || c.id;
	student text := 'student:' || (c.payload->>'student');
	events es.event[];
	capacity integer;
	subscribed integer;
	mine integer;
	already boolean;
BEGIN
	IF student IS NULL THEN
		SELECT array_agg(e ORDER BY "position") INTO events FROM dcb_lock(course) e;
	ELSE
		SELECT array_agg(e ORDER BY "position") INTO events FROM dcb_lock(course, student) e;
	END IF;
	SELECT (array_agg(e.payload->'capacity' ORDER BY "position" DESC)
				FILTER (WHERE type IN ('COURSE_DEFINED', 'CAPACITY_CHANGED')))[1]::integer,
		   count(*) FILTER (WHERE type = 'SUBSCRIBED' AND stream = c.stream),
		   count(*) FILTER (WHERE type = 'SUBSCRIBED' AND e.payload->'student' = c.payload->'student'),
		   bool_or(type = 'SUBSCRIBED' AND stream = c.stream AND e.payload->'student' = c.payload->'student')
	  INTO capacity, subscribed, mine, already
	  FROM unnest(events) e;
	IF c.name = 'DCB_DEFINE' THEN
		IF capacity IS NOT NULL THEN
			RAISE 'course % exists already', c.id;
		END IF;
		RETURN NEXT dcb_event('COURSE_DEFINED', c.payload, course);
		RETURN;
	END IF;
	IF capacity IS NULL THEN
		RAISE 'course % does not exist', c.id;
	ELSIF c.name = 'DCB_RESIZE' THEN
		IF capacity = (c.payload->>'capacity')::integer THEN
			RAISE 'the capacity is % already', capacity;
		END IF;
		RETURN NEXT dcb_event('CAPACITY_CHANGED', c.payload, course);
		RETURN;
	ELSIF subscribed >= capacity THEN
		RAISE 'course % is fully booked', c.id;
	ELSIF already THEN
		RAISE 'student % is in course % already', c.payload->>'student', c.id;
	ELSIF mine >= 3 THEN
		RAISE 'student % is in 3 courses already', c.payload->>'student';
	END IF;
	RETURN NEXT dcb_event('SUBSCRIBED', c.payload, course, student);
END
$$;
SELECT es_create_command('DCB_' || name, 'dcbcourse', decide => 'dcb_course(jsonb, es.command)')
  FROM unnest(ARRAY['DEFINE', 'RESIZE', 'SUBSCRIBE']) name;
SELECT dcb_try('DCB_DEFINE', 'c1', '{"capacity": 2}');
SELECT dcb_try('DCB_DEFINE', 'c1', '{"capacity": 3}');
SELECT dcb_try('DCB_RESIZE', 'c0', '{"capacity": 3}');
SELECT dcb_try('DCB_RESIZE', 'c1', '{"capacity": 2}');
SELECT dcb_try('DCB_SUBSCRIBE', 'c0', '{"student": "s1"}');
SELECT dcb_try('DCB_SUBSCRIBE', 'c1', '{"student": "s1"}');
SELECT dcb_try('DCB_SUBSCRIBE', 'c1', '{"student": "s1"}');
SELECT dcb_try('DCB_SUBSCRIBE', 'c1', '{"student": "s2"}');
SELECT dcb_try('DCB_SUBSCRIBE', 'c1', '{"student": "s3"}');
SELECT dcb_try('DCB_RESIZE', 'c1', '{"capacity": 3}');
SELECT dcb_try('DCB_SUBSCRIBE', 'c1', '{"student": "s3"}');
SELECT dcb_try('DCB_DEFINE', c, '{"capacity": 9}') FROM unnest(ARRAY['c2', 'c3', 'c4']) c;
SELECT dcb_try('DCB_SUBSCRIBE', c, '{"student": "s1"}') FROM unnest(ARRAY['c2', 'c3', 'c4']) c;

--
-- Unique user names: free again 3 days after the account was closed or renamed.
--
CREATE FUNCTION dcb_user(state jsonb, c es.command) RETURNS SETOF es.new_event
LANGUAGE plpgsql AS $$
DECLARE
	name text := c.payload->>'name';
	old_name text;
	last es.event;
BEGIN
	SELECT e.payload->>'name' INTO old_name FROM es_stream(c.stream) e ORDER BY version DESC LIMIT 1;
	IF c.name = 'DCB_CLOSE' THEN
		RETURN NEXT dcb_event('CLOSED', jsonb_build_object('was', old_name), 'name:' || old_name);
		RETURN;
	END IF;
	SELECT * INTO last FROM dcb_lock('name:' || name) e ORDER BY "position" DESC LIMIT 1;
	IF last.payload->>'name' = name OR c.submitted_at - last.recorded_at < '3 days' THEN
		RAISE 'name % is claimed', name;
	ELSIF c.name = 'DCB_REGISTER' THEN
		RETURN NEXT dcb_event('REGISTERED', c.payload, 'name:' || name);
	ELSE
		RETURN NEXT dcb_event('RENAMED', c.payload || jsonb_build_object('was', old_name),
							  'name:' || name, 'name:' || old_name);
	END IF;
END
$$;
SELECT es_create_command('DCB_REGISTER', 'dcbuser', decide => 'dcb_user(jsonb, es.command)', creates => true),
	   es_create_command('DCB_RENAME', 'dcbuser', decide => 'dcb_user(jsonb, es.command)', creates => false),
	   es_create_command('DCB_CLOSE', 'dcbuser', decide => 'dcb_user(jsonb, es.command)', creates => false);
SELECT dcb_try('DCB_REGISTER', '1', '{"name": "ann"}');
SELECT dcb_try('DCB_REGISTER', '2', '{"name": "ann"}');
SELECT dcb_try('DCB_CLOSE', '1');
SELECT dcb_try('DCB_REGISTER', '2', '{"name": "ann"}');
SELECT dcb_pass('3 days');
SELECT dcb_try('DCB_REGISTER', '2', '{"name": "ann"}');
SELECT dcb_try('DCB_REGISTER', '3', '{"name": "bob"}');
SELECT dcb_try('DCB_RENAME', '3', '{"name": "ann"}');
SELECT dcb_try('DCB_RENAME', '3', '{"name": "rob"}');
SELECT dcb_try('DCB_REGISTER', '4', '{"name": "rob"}');
SELECT dcb_try('DCB_REGISTER', '4', '{"name": "bob"}');
SELECT dcb_pass('3 days');
SELECT dcb_try('DCB_REGISTER', '4', '{"name": "bob"}');

--
-- Invoice numbers: the next one.
--
CREATE FUNCTION dcb_invoice(state jsonb, c es.command) RETURNS SETOF es.new_event
LANGUAGE plpgsql AS $$
BEGIN
	RETURN NEXT dcb_event('INVOICED', c.payload || jsonb_build_object('number', 1 + coalesce(
		(SELECT max((e.payload->>'number')::integer) FROM dcb_lock('dcbinvoice') e), 0)), 'dcbinvoice');
END
$$;
SELECT es_create_command('DCB_INVOICE', 'dcbinvoice', decide => 'dcb_invoice(jsonb, es.command)', creates => true);
SELECT dcb_try('DCB_INVOICE', 'a', '{"for": "tea"}');
SELECT dcb_try('DCB_INVOICE', 'b', '{"for": "cups"}');

--
-- Opt-in token: of a pending sign-up, used once, within an hour.
--
CREATE FUNCTION dcb_opt_in(state jsonb, c es.command) RETURNS SETOF es.new_event
LANGUAGE plpgsql AS $$
DECLARE
	address text := 'address:' || (c.payload->>'address');
	token text := 'token:' || (c.payload->>'token');
	sent es.event;
	used boolean;
BEGIN
	IF c.name = 'DCB_SIGN_UP' THEN
		RETURN NEXT dcb_event('SIGN_UP_BEGUN', c.payload, address, token);
		RETURN;
	END IF;
	SELECT bool_or(type = 'SIGN_UP_CONFIRMED') INTO used FROM dcb_lock(token);
	SELECT * INTO sent FROM dcb_lock(token) WHERE type = 'SIGN_UP_BEGUN' AND payload = c.payload;
	IF sent IS NULL THEN
		RAISE 'no sign-up of % awaits this token', c.payload->>'address';
	ELSIF used THEN
		RAISE 'the token was used already';
	ELSIF c.submitted_at - sent.recorded_at > '60 min' THEN
		RAISE 'the token has expired';
	END IF;
	RETURN NEXT dcb_event('SIGN_UP_CONFIRMED', c.payload, address, token);
END
$$;
SELECT es_create_command('DCB_' || name, 'dcboptin', decide => 'dcb_opt_in(jsonb, es.command)')
  FROM unnest(ARRAY['SIGN_UP', 'CONFIRM']) name;
SELECT dcb_try('DCB_CONFIRM', '1', '{"address": "ann@es", "token": "1111"}');
SELECT dcb_try('DCB_SIGN_UP', '1', '{"address": "ann@es", "token": "1111"}');
SELECT dcb_try('DCB_CONFIRM', '2', '{"address": "bob@es", "token": "1111"}');
SELECT dcb_try('DCB_CONFIRM', '1', '{"address": "ann@es", "token": "1111"}');
SELECT dcb_try('DCB_CONFIRM', '1', '{"address": "ann@es", "token": "1111"}');
SELECT dcb_try('DCB_SIGN_UP', '2', '{"address": "bob@es", "token": "2222"}');
SELECT dcb_pass('61 min');
SELECT dcb_try('DCB_CONFIRM', '2', '{"address": "bob@es", "token": "2222"}');

--
-- Dynamic product price: what is ordered is at the price that holds, or did
-- until 10 minutes ago, also where several products are ordered at once.
--
CREATE FUNCTION dcb_price(state jsonb, c es.command) RETURNS SETOF es.new_event
LANGUAGE plpgsql AS $$
DECLARE
	tags text[] := ARRAY(SELECT 'product:' || key FROM jsonb_each(c.payload) ORDER BY key);
	wrong text;
BEGIN
	IF c.name = 'DCB_PRICE' THEN
		RETURN NEXT dcb_event('PRICED', c.payload, VARIADIC tags);
		RETURN;
	END IF;
	-- A price holds until the next one; that of a product is in each of its events.
	WITH price AS (
		SELECT p.key AS product, p.value AS price,
			   lead(e.recorded_at) OVER (PARTITION BY p.key ORDER BY e."position") AS until
		  FROM dcb_lock(VARIADIC tags) e, jsonb_each(e.payload) p
		 WHERE e.type = 'PRICED')
	SELECT key INTO wrong FROM jsonb_each(c.payload) o
	 WHERE NOT EXISTS (SELECT FROM price p WHERE p.product = o.key AND p.price = o.value
						  AND (p.until IS NULL OR c.submitted_at - p.until < '10 min'))
	 ORDER BY key LIMIT 1;
	IF wrong IS NOT NULL THEN
		RAISE 'the price of % is another one', wrong;
	END IF;
	RETURN NEXT dcb_event('ORDERED', c.payload, VARIADIC tags);
END
$$;
SELECT es_create_command('DCB_PRICE', 'dcbproduct', decide => 'dcb_price(jsonb, es.command)'),
	   es_create_command('DCB_ORDER', 'dcborder', decide => 'dcb_price(jsonb, es.command)', creates => true);
SELECT dcb_try('DCB_PRICE', 'tea', '{"tea": 4}');
SELECT dcb_try('DCB_PRICE', 'cup', '{"cup": 7}');
SELECT dcb_try('DCB_ORDER', '1', '{"tea": 5}');
SELECT dcb_try('DCB_ORDER', '1', '{"tea": 4}');
SELECT dcb_pass('20 min');
SELECT dcb_try('DCB_PRICE', 'tea', '{"tea": 6}');
SELECT dcb_try('DCB_ORDER', '2', '{"tea": 4}');
SELECT dcb_try('DCB_ORDER', '3', '{"tea": 6, "cup": 7}');
SELECT dcb_pass('11 min');
SELECT dcb_try('DCB_ORDER', '4', '{"tea": 4}');
SELECT dcb_try('DCB_ORDER', '4', '{"tea": 6, "cup": 8}');
SELECT dcb_try('DCB_ORDER', '4', '{"tea": 6, "cup": 7, "pot": 9}');
SELECT dcb_try('DCB_ORDER', '4', '{"tea": 6, "cup": 7}');

--
-- Idempotency: a request that is sent again is none; here by a tag, and by the
-- command_id that es_submit() takes.
--
CREATE FUNCTION dcb_place(state jsonb, c es.command) RETURNS SETOF es.new_event
LANGUAGE plpgsql AS $$
DECLARE
	request text := 'request:' || (c.payload->>'request');
BEGIN
	IF EXISTS (SELECT FROM dcb_lock(request)) THEN
		RAISE 're-submission';
	END IF;
	RETURN NEXT dcb_event('PLACED', c.payload, request);
END
$$;
SELECT es_create_command('DCB_PLACE', 'dcbplace', decide => 'dcb_place(jsonb, es.command)'),
	   es_create_command('DCB_PLACE_PLAINLY', 'dcbplace', 'PLACED');
SELECT dcb_try('DCB_PLACE', '1', '{"request": "r1"}');
SELECT dcb_try('DCB_PLACE', '2', '{"request": "r1"}');
SELECT dcb_try('DCB_PLACE', '2', '{"request": "r2"}');
SELECT version, events, duplicate
  FROM es_submit('DCB_PLACE_PLAINLY', '3', command_id => '00000000-0000-0000-0000-00000000dcb1');
SELECT version, events, duplicate
  FROM es_submit('DCB_PLACE_PLAINLY', '3', command_id => '00000000-0000-0000-0000-00000000dcb1');

SELECT count(es_drop_command(name)::text) FROM es_commands WHERE name LIKE 'DCB%';
DROP FUNCTION dcb_try, dcb_pass, dcb_lock, dcb_event, dcb_course, dcb_user, dcb_invoice, dcb_opt_in,
	dcb_price, dcb_place;
SET es.allow_destructive = on;
DELETE FROM es.tag WHERE "position" IN (SELECT "position" FROM es.event WHERE category LIKE 'dcb%');
DELETE FROM es.event WHERE category LIKE 'dcb%';
DELETE FROM es.command_log WHERE command LIKE 'DCB%';
