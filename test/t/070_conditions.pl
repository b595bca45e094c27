# The examples of dcb.events, each with 8 writers at once on one scope: no
# invariant is ever broken, and every writer gets an answer.
#
# Each example is decided in two ways: by a decider in the server, which waits
# and never retries, and by a client's read, decide, append-if and retry.

use strict;
use warnings;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;

my $writers = 8;
my $node = EsNode->create('main', conf => "deadlock_timeout = 10s\nsynchronous_commit = off");

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Let 8 clients of pgbench run a statement so many times each.  No client may
# fail.
sub write_at_once
{
	my ($times, $statement, $test) = @_;

	$node->pgbench("-n -c $writers -j 2 -t $times", 0,
		[qr{processed: @{[ $writers * $times ]}/@{[ $writers * $times ]}}], [qr{^$}],
		$test, { "070_" . ($test =~ s/\W+/_/gr) => $statement });
	return;
}

# What happened is counted by whoever asked: "accepted", or why not.
sql(q{
	CREATE TABLE answer (example text, answer text);

	-- Submit a command and note the answer.
	CREATE FUNCTION try_submit(example text, command text, id text, payload jsonb,
							   command_id uuid DEFAULT NULL) RETURNS text
	LANGUAGE plpgsql AS $$
	DECLARE
		result text := 'accepted';
	BEGIN
		PERFORM es_submit(command, id, payload, command_id);
		INSERT INTO answer VALUES (example, result);
		RETURN result;
	EXCEPTION WHEN SQLSTATE 'ES002' THEN
		result := SQLERRM;
		INSERT INTO answer VALUES (example, result);
		RETURN result;
	END
	$$;

	CREATE FUNCTION query(types text[], tags text[]) RETURNS jsonb LANGUAGE sql AS $$
		SELECT jsonb_build_object('types', types, 'tags', tags)
	$$;
	CREATE FUNCTION queries(VARIADIC items jsonb[]) RETURNS jsonb LANGUAGE sql AS $$
		SELECT jsonb_build_object('items', to_jsonb(items))
	$$;
	CREATE FUNCTION event(type text, payload jsonb, tags text[]) RETURNS es.new_event
		LANGUAGE sql AS $$ SELECT ROW(type, payload, NULL, tags, NULL)::es.new_event $$;

	-- Append if nothing else happened since the decision, else say so.
	CREATE FUNCTION try_append(stream text, e es.new_event, q jsonb, after bigint) RETURNS boolean
	LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM es_append_if(jsonb_build_array(jsonb_build_object('stream', stream,
			'type', e.type, 'payload', e.payload, 'tags', e.tags)), q, after);
		RETURN true;
	EXCEPTION WHEN SQLSTATE 'ES004' THEN
		RETURN false;
	END
	$$;
});

#
# Course subscriptions: a course has a capacity, a student at most 3 courses,
# and nobody is in a course twice.
#
sql(q{
	CREATE FUNCTION subscription_query(course text, student text) RETURNS jsonb LANGUAGE sql AS $$
		SELECT queries(query('{SUBSCRIBED}', ARRAY['course:' || course]),
					   query('{SUBSCRIBED}', ARRAY['student:' || student]))
	$$;
	CREATE FUNCTION subscription_problem(events es.event[], course text, student text) RETURNS text
	LANGUAGE sql AS $$
		SELECT CASE
			WHEN count(*) FILTER (WHERE e.payload->>'course' = course
								  AND e.payload->>'student' = student) > 0 THEN 'twice'
			WHEN count(*) FILTER (WHERE e.payload->>'course' = course) >= 10 THEN 'full'
			WHEN count(*) FILTER (WHERE e.payload->>'student' = student) >= 3 THEN 'busy' END
		  FROM unnest(events) e
	$$;
	CREATE FUNCTION subscribe(state jsonb, c es.command) RETURNS SETOF es.new_event
	LANGUAGE plpgsql AS $$
	DECLARE
		course text := c.id;
		student text := c.payload->>'student';
		events es.event[];
		problem text;
	BEGIN
		SELECT array_agg(e) INTO events
		  FROM es_lock_matching(subscription_query(course, student)) e;
		problem := subscription_problem(events, course, student);
		IF problem IS NOT NULL THEN
			RAISE EXCEPTION '%', problem;
		END IF;
		RETURN NEXT event('SUBSCRIBED', jsonb_build_object('course', course, 'student', student),
						  ARRAY['course:' || course, 'student:' || student]);
	END
	$$;
	SELECT es_create_command('SUBSCRIBE', 'course', decide => 'subscribe(jsonb, es.command)');

	-- The same as a client does it: read, decide, append if, retry.
	CREATE FUNCTION subscribe_client(course text, student text) RETURNS text
	LANGUAGE plpgsql AS $$
	DECLARE
		q jsonb := subscription_query(course, student);
		events es.event[];
		problem text;
	BEGIN
		LOOP
			SELECT array_agg(e) INTO events FROM es_read_matching(q) e;
			problem := subscription_problem(events, course, student);
			EXIT WHEN problem IS NOT NULL;
			EXIT WHEN try_append('course-' || course, event('SUBSCRIBED',
				jsonb_build_object('course', course, 'student', student),
				ARRAY['course:' || course, 'student:' || student]), q, es_read_to());
		END LOOP;
		INSERT INTO answer VALUES ('subscribe client', coalesce(problem, 'accepted'));
		RETURN problem;
	END
	$$;
});

sub check_subscriptions
{
	my ($example, $prefix) = @_;

	is(sql(qq{SELECT count(*) FROM answer WHERE example = '$example'}), $writers * 50,
		"$example: every writer got an answer");
	is(sql(qq{SELECT count(*) FROM answer WHERE example = '$example' AND answer = 'accepted'}),
		sql(qq{SELECT count(*) FROM es.event WHERE type = 'SUBSCRIBED' AND stream LIKE 'course-$prefix%'}),
		"$example: who was told so is subscribed, and nobody else");
	is(sql(qq{
		SELECT max(n) <= 10 FROM (SELECT count(*) AS n FROM es.event
			WHERE type = 'SUBSCRIBED' AND stream LIKE 'course-$prefix%' GROUP BY payload->>'course') s}),
		't', "$example: no course is over its capacity");
	is(sql(qq{
		SELECT max(n) <= 3 FROM (SELECT count(*) AS n FROM es.event
			WHERE type = 'SUBSCRIBED' AND stream LIKE 'course-$prefix%' GROUP BY payload->>'student') s}),
		't', "$example: no student has more than three courses");
	is(sql(qq{
		SELECT count(*) FROM (SELECT FROM es.event
			WHERE type = 'SUBSCRIBED' AND stream LIKE 'course-$prefix%'
			GROUP BY payload->>'course', payload->>'student' HAVING count(*) > 1) s}),
		0, "$example: nobody is in a course twice");
	return;
}

write_at_once(50, q{
	\set c random(1, 4)
	\set s random(1, 15)
	SELECT try_submit('subscribe', 'SUBSCRIBE', 'd:c', jsonb_build_object('student', 'd:s'));
} =~ s/'d:(\w)'/'d' || :$1/gr, 'eight writers subscribe by a decider');
check_subscriptions('subscribe', 'd');
write_at_once(50, q{
	\set c random(1, 4)
	\set s random(1, 15)
	SELECT subscribe_client('e' || :c, 'e' || :s);
}, 'eight writers subscribe by append-if');
check_subscriptions('subscribe client', 'e');

#
# Unique user names: claimed once, free again when released.
#
sql(q{
	CREATE FUNCTION name_query(name text) RETURNS jsonb LANGUAGE sql AS
		$$ SELECT queries(query('{NAME_CLAIMED,NAME_RELEASED}', ARRAY['name:' || name])) $$;
	CREATE FUNCTION name_change(state jsonb, c es.command) RETURNS SETOF es.new_event
	LANGUAGE plpgsql AS $$
	DECLARE
		name text := c.payload->>'name';
		last es.event;
	BEGIN
		SELECT * INTO last FROM es_lock_matching(name_query(name)) e ORDER BY "position" DESC LIMIT 1;
		IF last.type IS DISTINCT FROM 'NAME_CLAIMED' THEN
			RETURN NEXT event('NAME_CLAIMED', jsonb_build_object('name', name), ARRAY['name:' || name]);
		ELSIF last.stream = c.stream THEN
			RETURN NEXT event('NAME_RELEASED', jsonb_build_object('name', name), ARRAY['name:' || name]);
		ELSE
			RAISE EXCEPTION 'taken';
		END IF;
	END
	$$;
	SELECT es_create_command('NAME', 'user', decide => 'name_change(jsonb, es.command)');
	CREATE FUNCTION name_client(id text, name text) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		last es.event;
		type text;
	BEGIN
		LOOP
			SELECT * INTO last FROM es_read_matching(name_query(name)) e ORDER BY "position" DESC LIMIT 1;
			EXIT WHEN last.type = 'NAME_CLAIMED' AND last.stream <> 'user-' || id;
			type := CASE WHEN last.type = 'NAME_CLAIMED' THEN 'NAME_RELEASED' ELSE 'NAME_CLAIMED' END;
			EXIT WHEN try_append('user-' || id, event(type, jsonb_build_object('name', name),
				ARRAY['name:' || name]), name_query(name), coalesce(last."position", 0));
		END LOOP;
	END
	$$;
});
write_at_once(50, q{
	\set n random(1, 6)
	\set u random(1, 1000000)
	SELECT try_submit('name', 'NAME', 'd' || :client_id || '-' || :n % 2, jsonb_build_object('name', 'd' || :n));
}, 'eight writers claim and release names by a decider');
write_at_once(50, q{
	\set n random(1, 6)
	SELECT name_client('e' || :client_id || '-' || :n % 2, 'e' || :n);
}, 'eight writers claim and release names by append-if');
is(sql(q{
	SELECT count(*) FROM (
		SELECT type, stream, lag(type) OVER w AS before, lag(stream) OVER w AS by FROM es.event
		 WHERE type IN ('NAME_CLAIMED', 'NAME_RELEASED')
		WINDOW w AS (PARTITION BY payload->>'name' ORDER BY "position")) s
	 WHERE (type = 'NAME_CLAIMED' AND before = 'NAME_CLAIMED')
		OR (type = 'NAME_RELEASED' AND (before IS DISTINCT FROM 'NAME_CLAIMED' OR by <> stream))}),
	0, 'names: no name is claimed by two, and only its owner releases it');
is(sql(q{SELECT count(*) > 50 FROM es.event WHERE type = 'NAME_RELEASED'}), 't',
	'names: there was something to fight about');

#
# Invoice numbers: consecutive, without a gap; a condition on a type alone.
#
sql(q{
	CREATE FUNCTION invoice(state jsonb, c es.command) RETURNS SETOF es.new_event
	LANGUAGE plpgsql AS $$
	DECLARE
		n bigint;
	BEGIN
		SELECT coalesce(max((e.payload->>'number')::bigint), 0) + 1 INTO n
		  FROM es_lock_matching(queries('{"types": ["INVOICED"]}')) e;
		RETURN NEXT event('INVOICED', jsonb_build_object('number', n), NULL);
	END
	$$;
	SELECT es_create_command('INVOICE', 'invoice', decide => 'invoice(jsonb, es.command)', creates => true);
	CREATE FUNCTION invoice_client(id text) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		q jsonb := queries('{"types": ["BILLED"]}');
		last es.event;
	BEGIN
		LOOP
			SELECT * INTO last FROM es_read_matching(q) e ORDER BY "position" DESC LIMIT 1;
			EXIT WHEN try_append('bill-' || id, event('BILLED', jsonb_build_object('number',
				coalesce((last.payload->>'number')::bigint, 0) + 1), NULL), q, coalesce(last."position", 0));
		END LOOP;
	END
	$$;
});
write_at_once(25, q{
	SELECT es_submit('INVOICE', gen_random_uuid()::text);
}, 'eight writers number invoices by a decider');
write_at_once(25, q{
	SELECT invoice_client(gen_random_uuid()::text);
}, 'eight writers number bills by append-if');
for my $type ('INVOICED', 'BILLED')
{
	is(sql(qq{
		SELECT count(*), min((payload->>'number')::int), max((payload->>'number')::int),
			   count(DISTINCT payload->>'number'),
			   bool_and((payload->>'number')::int = before + 1)
		  FROM (SELECT payload, lag((payload->>'number')::int, 1, 0) OVER (ORDER BY "position") AS before
				  FROM es.event WHERE type = '$type') s}),
		'200|1|200|200|t', "$type: numbers are consecutive, in the order of the log");
}

#
# Opt-in token: redeemed once.
#
sql(q{
	SELECT FROM generate_series(1, 20) i, es_append('signup-' || i, 'TOKEN_SENT',
		jsonb_build_object('token', i), tags => ARRAY['token:' || i]);
	CREATE FUNCTION redeem(state jsonb, c es.command) RETURNS SETOF es.new_event
	LANGUAGE plpgsql AS $$
	DECLARE
		token text := c.payload->>'token';
		seen text[];
	BEGIN
		SELECT array_agg(e.type) INTO seen
		  FROM es_lock_matching(queries(query('{TOKEN_SENT,REDEEMED}', ARRAY['token:' || token]))) e;
		IF NOT coalesce('TOKEN_SENT' = ANY (seen), false) THEN
			RAISE EXCEPTION 'unknown';
		ELSIF 'REDEEMED' = ANY (seen) THEN
			RAISE EXCEPTION 'used';
		END IF;
		RETURN NEXT event('REDEEMED', jsonb_build_object('token', token), ARRAY['token:' || token]);
	END
	$$;
	SELECT es_create_command('REDEEM', 'customer', decide => 'redeem(jsonb, es.command)');
});
write_at_once(40, q{
	\set t random(1, 25)
	SELECT try_submit('token', 'REDEEM', :client_id::text, jsonb_build_object('token', :t));
}, 'eight writers redeem tokens');
is(sql(q{
	SELECT count(*), count(DISTINCT payload->>'token'), max((payload->>'token')::int) <= 20
	  FROM es.event WHERE type = 'REDEEMED'}), '20|20|t', 'tokens: each is redeemed once');
is(sql(q{SELECT count(*) FROM answer WHERE example = 'token' AND answer = 'accepted'}), 20,
	'tokens: one of those who tried was told so');

#
# Dynamic product price: an order is at the price that holds, while it changes.
#
sql(q{
	CREATE FUNCTION price_query(product text) RETURNS jsonb LANGUAGE sql AS
		$$ SELECT queries(query('{PRICE_CHANGED}', ARRAY['product:' || product])) $$;
	SELECT FROM generate_series(1, 2) i, es_append('product-' || i, 'PRICE_CHANGED',
		jsonb_build_object('product', i, 'price', 1), tags => ARRAY['product:' || i]);
	CREATE FUNCTION order_product(state jsonb, c es.command) RETURNS SETOF es.new_event
	LANGUAGE plpgsql AS $$
	DECLARE
		product text := c.payload->>'product';
		price text;
	BEGIN
		SELECT e.payload->>'price' INTO price FROM es_lock_matching(price_query(product)) e
		 ORDER BY "position" DESC LIMIT 1;
		IF price IS DISTINCT FROM c.payload->>'price' THEN
			RAISE EXCEPTION 'the price is %', price;
		END IF;
		RETURN NEXT event('ORDERED', c.payload, ARRAY['product:' || product]);
	END
	$$;
	SELECT es_create_command('ORDER', 'order', decide => 'order_product(jsonb, es.command)');
});
write_at_once(50, q{
	\set p random(1, 2)
	\set price random(1, 3)
	\set change random(1, 4)
	\if :change = 1
		SELECT es_append('product-' || :p, 'PRICE_CHANGED', jsonb_build_object('product', :p, 'price', :price),
						 tags => ARRAY['product:' || :p]);
	\else
		SELECT try_submit('price', 'ORDER', gen_random_uuid()::text,
						  jsonb_build_object('product', :p, 'price', :price));
	\endif
}, 'eight writers order while prices change');
is(sql(q{
	SELECT count(*) > 20, bool_and(o.payload->>'price' = (
		SELECT c.payload->>'price' FROM es.event c
		 WHERE c.type = 'PRICE_CHANGED' AND c.payload->>'product' = o.payload->>'product'
		   AND c."position" < o."position" ORDER BY c."position" DESC LIMIT 1))
	  FROM es.event o WHERE o.type = 'ORDERED'}), 't|t',
	'prices: every order is at the price that held when it was placed');

#
# Idempotency: by a tag as in the specification, and by command_id.
#
sql(q{
	CREATE FUNCTION place(state jsonb, c es.command) RETURNS SETOF es.new_event
	LANGUAGE plpgsql AS $$
	DECLARE
		token text := c.payload->>'token';
	BEGIN
		IF EXISTS (SELECT FROM es_lock_matching(queries(query('{PLACED}', ARRAY['idempotency:' || token])))) THEN
			RETURN;
		END IF;
		RETURN NEXT event('PLACED', c.payload, ARRAY['idempotency:' || token]);
	END
	$$;
	SELECT es_create_command('PLACE', 'basket', decide => 'place(jsonb, es.command)');
	SELECT es_create_command('PLACE_PLAINLY', 'basket', 'PLACED_PLAINLY');
});
write_at_once(40, q{
	\set t random(1, 30)
	SELECT es_submit('PLACE', gen_random_uuid()::text, jsonb_build_object('token', :t));
}, 'eight writers repeat requests by a tag');
write_at_once(40, q{
	\set t random(1, 30)
	SELECT es_submit('PLACE_PLAINLY', :t::text, jsonb_build_object('token', :t), md5(:t::text)::uuid);
	SELECT es_append('basket-x' || :t, 'PLACED_SIMPLY', jsonb_build_object('token', :t),
					 command_id => md5('a' || :t)::uuid);
	SELECT es_append_if(jsonb_build_array(jsonb_build_object('stream', 'basket-y' || :t, 'type', 'PLACED_IF',
		'payload', jsonb_build_object('token', :t), 'tags', ARRAY['if:' || :t])),
		queries(query(NULL, ARRAY['if:' || :t]) - 'types'), command_id => md5('i' || :t)::uuid);
}, 'eight writers repeat requests by a command_id');
for my $type ('PLACED', 'PLACED_PLAINLY', 'PLACED_SIMPLY', 'PLACED_IF')
{
	is(sql(qq{SELECT count(*), count(DISTINCT payload->>'token') FROM es.event WHERE type = '$type'}),
		'30|30', "$type: each request has one effect");
}

#
# Streams: transfers over each other's streams neither deadlock nor lose money.
#
sql(q{
	CREATE FUNCTION balance(state jsonb, e es.event) RETURNS jsonb LANGUAGE sql AS $$
		SELECT jsonb_build_object('balance', (state->>'balance')::int +
			CASE e.type WHEN 'IN' THEN 1 ELSE -1 END * (e.payload->>'amount')::int)
	$$;
	CREATE FUNCTION transfer(state jsonb, c es.command) RETURNS SETOF es.new_event
	LANGUAGE plpgsql AS $$
	BEGIN
		IF (state->>'balance')::int < (c.payload->>'amount')::int THEN
			RAISE EXCEPTION 'too little';
		END IF;
		RETURN NEXT ROW('OUT', c.payload, NULL, NULL, NULL)::es.new_event;
		RETURN NEXT ROW('IN', c.payload, NULL, NULL, 'purse-' || (c.payload->>'to'))::es.new_event;
	END
	$$;
	SELECT es_create_aggregate('purse', 'balance(jsonb, es.event)', '{"balance": 10}', 20);
	SELECT es_create_command('TRANSFER', 'purse', decide => 'transfer(jsonb, es.command)');
});
write_at_once(100, q{
	\set a random(1, 5)
	\set b random(1, 4)
	\set amount random(1, 8)
	SELECT try_submit('transfer', 'TRANSFER', :a::text,
					  jsonb_build_object('to', 1 + (:a + :b - 1) % 5, 'amount', :amount));
}, 'eight writers transfer money in all directions');
is(sql(q{SELECT sum((es_state('purse-' || i)->>'balance')::int),
				min((es_state('purse-' || i)->>'balance')::int) >= 0 FROM generate_series(1, 5) i}),
	'50|t', 'transfers: no money is made, lost or owed');
is(sql(q{
	SELECT bool_and((es_state(stream, version)->>'balance')::int >= 0) FROM es.event WHERE category = 'purse'}),
	't', 'transfers: no purse was ever below zero');

is(sql(q{SELECT deadlocks FROM pg_stat_database WHERE datname = 'postgres'}), 0,
	'nobody ran into a deadlock');
$node->stop;
done_testing();
