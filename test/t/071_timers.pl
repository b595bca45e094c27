# Timers: a scheduled command is submitted when it is due, exactly once, as the
# role that scheduled it, whatever happens in between.

use strict;
use warnings;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = EsNode->create('main', conf => "es.schedule_attempts = 2");

sub sql { return $node->safe_psql('postgres', $_[0]); }

# As the clerk, whose projector it is that submits.
sub as_clerk
{
	return $node->safe_psql('postgres', $_[0],
		extra_params => [ '-U', 'clerk' ]);
}

sub await
{
	my ($query, $test) = @_;

	ok($node->poll_query_until('postgres', $query), $test);
	return;
}

sql(q{
	CREATE ROLE clerk LOGIN;
	CREATE ROLE idler LOGIN;
	SELECT es_grant('clerk', 'writer'), es_grant('idler', 'writer');
	CREATE TABLE secret (word text);
	CREATE FUNCTION remind(state jsonb, c es.command) RETURNS SETOF es.new_event
	LANGUAGE plpgsql AS $$
	BEGIN
		IF c.payload ? 'reject' THEN
			RAISE EXCEPTION 'not like this';
		ELSIF c.payload ? 'pry' THEN
			PERFORM * FROM secret;
		END IF;
		RETURN NEXT ROW('REMINDED', c.payload || jsonb_build_object('by', c.submitted_by,
			'user', current_user, 'session', session_user), NULL, NULL, NULL)::es.new_event;
	END
	$$;
	SELECT es_create_command('REMIND', 'order', decide => 'remind(jsonb, es.command)');
});
$node->append_conf('pg_hba.conf', 'local all all trust');
$node->reload;

#
# When it is due, as the role, with its metadata
#
my $before = sql('SELECT clock_timestamp()');
as_clerk(q{
	SET es.metadata = '{"correlation": 7}';
	SELECT es_schedule('REMIND', '1', '{"n": 1}', clock_timestamp() + interval '1.5 s',
					   '00000000-0000-0000-0000-000000000001');
});
is(sql('SELECT count(*) FROM es.event'), 0, 'not before it is due');
await(q{SELECT count(*) = 1 FROM es.event}, 'when it is due');
is(sql(qq{SELECT recorded_at - '$before' >= '1.5 s' FROM es.event}), 't', 'and not before');
is(sql(q{SELECT payload, metadata FROM es.event}),
	'{"n": 1, "by": "clerk", "user": "clerk", "session": "clerk"}|{"correlation": 7}',
	'as the role that scheduled it, with the metadata of its session');
is(sql(q{SELECT count(*) FROM es_schedules}), 0, 'then it is off the schedule');
is(as_clerk(q{SELECT events, duplicate FROM es_submit('REMIND', '1', '{"n": 1}',
	'00000000-0000-0000-0000-000000000001')}), '1|t',
	'and its id stands for what it led to');
is(as_clerk(q{SELECT es_cancel('00000000-0000-0000-0000-000000000001')}), 'f',
	'what is done cannot be cancelled');

#
# What has passed is due at once; what is cancelled or rolled back never is
#
as_clerk(q{
	SELECT es_schedule('REMIND', '2', '{"n": 2}', '2020-01-01');
	BEGIN; SELECT es_schedule('REMIND', '2', '{"n": 3}', '2020-01-01'); ROLLBACK;
	BEGIN;
	SELECT es_schedule('REMIND', '2', '{"n": 4}', '2020-01-01', '00000000-0000-0000-0000-000000000004');
	SELECT es_cancel('00000000-0000-0000-0000-000000000004');
	COMMIT;
	SELECT es_schedule('REMIND', '2', '{"n": 5}', '2020-01-01');
});
await(q{SELECT count(*) = 2 FROM es.event WHERE stream = 'order-2'}, 'what has passed is due at once');
is(sql(q{SELECT string_agg(payload->>'n', ',' ORDER BY version) FROM es.event WHERE stream = 'order-2'}),
	'2,5', 'and what was cancelled or rolled back is not');

#
# Failures: rejected, not allowed, tried so many times
#
my $log = $node->log_end;
as_clerk(q{
	SELECT es_schedule('REMIND', '3', '{"reject": true}', '2020-01-01');
	SELECT es_schedule('REMIND', '3', '{"pry": true}', '2020-01-01', '00000000-0000-0000-0000-000000000006');
	SELECT es_schedule('REMIND', '3', '{"n": 7}', '2020-01-01');
});
await(q{SELECT count(*) = 2 FROM es_schedules WHERE status = 'failed'}, 'failures come to an end');
is(as_clerk(q{SELECT attempts, last_error_sqlstate, next_attempt_at IS NULL, last_error
				FROM es_schedules ORDER BY attempts}),
	"1|ES002|t|not like this (Command \"REMIND\" on stream \"order-3\" was rejected with SQLSTATE P0001.)\n"
	  . '2|42501|t|permission denied for table secret',
	'a rejection is final, another error is tried again; the role has its own rights alone');
is(sql(q{SELECT payload->>'n' FROM es.event WHERE stream = 'order-3'}), '7',
	'and the others go on');
ok($node->log_has(qr/scheduled command "REMIND" on "3" failed: permission denied for table secret/, $log),
	'the log says so');
as_clerk(q{SELECT es_cancel(id) FROM es_schedules});
is(sql(q{SELECT count(*) FROM es_schedules}), 0, 'who has seen a failure takes it away');

#
# A role that may not submit any more
#
$node->safe_psql('postgres', q{SELECT es_schedule('REMIND', '4', '{}', clock_timestamp() + '1 s')},
	extra_params => [ '-U', 'idler' ]);
sql(q{SELECT es_revoke('idler', 'writer')});
await(q{SELECT count(*) = 1 FROM es_schedules WHERE status = 'failed' AND last_error_sqlstate = '42501'},
	'a role that lost its rights submits nothing');
sql(q{SELECT es_cancel(id) FROM es_schedules});

#
# A stream that somebody keeps locked holds up its own command alone, neither
# other commands nor the projections of the role, and the command waits for as
# long as it takes.
#
my $keeper = $node->background_psql('postgres', on_error_stop => 1);
$keeper->query_safe(q{BEGIN; SELECT version FROM es_append('order-40', 'KEPT')});
sql(q{
	GRANT CREATE ON SCHEMA public TO clerk;
	SELECT es_grant('clerk', 'projector'), es_grant('clerk', 'reader')});
as_clerk(q{
	CREATE TABLE reminded (stream text);
	SELECT es_create_projection('reminded', 'INSERT INTO reminded SELECT stream FROM es_batch',
								types => '{REMINDED}', start_after => es_settled());
	SELECT es_schedule('REMIND', '40', '{"n": 1}', '2020-01-01');
	SELECT es_schedule('REMIND', '41', '{"n": 1}', '2020-01-02')});
await(q{SELECT count(*) = 1 FROM es.event WHERE stream = 'order-41'}, 'a command goes on beside one that waits for a lock');
await(q{SELECT last_error_sqlstate = '55P03' AND attempts >= 2 AND status = 'retrying' FROM es_schedules},
	'which is put off, however often');
$keeper->query_safe('COMMIT');
$keeper->quit;
await(q{SELECT count(*) = 0 FROM es_schedules}, 'until the lock is free');
is(sql(q{SELECT string_agg(type, ' ' ORDER BY version) FROM es_stream('order-40')}), 'KEPT REMINDED',
	'and is submitted once');
await(q{SELECT count(*) = 2 FROM reminded}, 'the projections of the role have their turn');

#
# Downtime
#
as_clerk(q{SELECT es_schedule('REMIND', '5', '{"n": 1}', clock_timestamp() + interval '1 s')});
$node->stop('fast');
sleep 2;
$node->start;
await(q{SELECT count(*) = 1 FROM es.event WHERE stream = 'order-5'},
	'what became due while the server was down is submitted when it is up');

# An hour of it, as the workers find it: what became due in that hour waits, one
# command every 6 seconds, and there is what comes later.  The clock cannot be
# set, so nobody submits (es.workers = off) what is due in the past.
$node->append_conf('postgresql.conf', 'es.workers = off');
$node->restart;
as_clerk(q{
	SELECT count(es_schedule('REMIND', '30', jsonb_build_object('hour', i),
				clock_timestamp() - i * interval '6 s')) FROM generate_series(1, 600) i;
	SELECT es_schedule('REMIND', '31', '{"n": 1}', clock_timestamp() + interval '1 day',
					   '00000000-0000-0000-0000-000000000031')});
is(sql(q{SELECT count(*) FROM es_schedules WHERE due < now()}), 600, 'an hour passed without workers');
$node->append_conf('postgresql.conf', 'es.workers = on');
$node->restart;
$node->poll_query_until('postgres', q{SELECT count(*) >= 100 FROM es_stream('order-30')});
$node->crash;
$node->start;
await(q{SELECT count(*) = 1 FROM es_schedules}, 'what became due in an hour of downtime is submitted, crash or not');
is(sql(q{
	SELECT count(*), count(DISTINCT payload->>'hour'),
		   bool_and((payload->>'hour')::int = 601 - version) FROM es_stream('order-30')}),
	'600|600|t', 'each once, in the order in which they were due');
is(sql(q{SELECT count(*) FROM es_stream('order-31')}), 0, 'and nothing before it is due');
as_clerk(q{SELECT es_cancel('00000000-0000-0000-0000-000000000031')});

#
# Exactly once, through crashes in the middle
#
my $n = 300;
as_clerk(qq{
	SELECT count(es_schedule('REMIND', (6 + i % 5)::text, jsonb_build_object('crash', i),
				clock_timestamp() + i * interval '3 ms')) FROM generate_series(1, $n) i});
for my $crash (1 .. 3)
{
	my $enough = $crash * $n / 5;

	$node->poll_query_until('postgres',
		"SELECT count(*) >= $enough FROM es.event WHERE payload ? 'crash'");
	if ($crash == 2)
	{
		$node->safe_psql('postgres',
			q{SELECT pg_terminate_backend(pid) FROM es_stat_workers WHERE kind = 'projector'});
		next;
	}
	$node->stop('immediate');
	$node->start;
}
await(q{SELECT count(*) = 0 FROM es_schedules}, 'after crashes everything is submitted');
is(sql(q{SELECT count(*), count(DISTINCT payload->>'crash') FROM es.event WHERE payload ? 'crash'}),
	"$n|$n", 'and everything once');

#
# A copy of the database fires nothing until it is told that it is no copy
#
as_clerk(q{SELECT es_schedule('REMIND', '20', '{"n": 1}', clock_timestamp() + interval '2 s')});
sql('CREATE DATABASE copy TEMPLATE postgres');
await(q{SELECT count(*) = 1 FROM es.event WHERE stream = 'order-20'}, 'the original fires');
is($node->safe_psql('copy', q{SELECT count(*) FROM es_schedules}), 1, 'the copy does not');
$node->safe_psql('copy', 'SELECT es_activate()');
ok($node->poll_query_until('copy', q{SELECT count(*) = 1 FROM es.event WHERE stream = 'order-20'}),
	'until it is activated');

#
# Command ids are forgotten after es.command_retention
#
as_clerk(q{
	SELECT count(es_append('bulk-1', 'X', command_id => gen_random_uuid())) FROM generate_series(1, 2500);
});
ok(sql(q{SELECT count(*) FROM es.command_log}) > 2500, 'command ids are kept');
sleep 1;
my $kept = sql(q{
	SET es.allow_destructive = on;
	CREATE TABLE step (n bigint);
	CREATE FUNCTION note_step() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		INSERT INTO public.step SELECT count(*) FROM old HAVING count(*) > 0;
		RETURN NULL;
	END
	$$;
	CREATE TRIGGER note_step AFTER DELETE ON es.command_log REFERENCING OLD TABLE AS old
		FOR EACH STATEMENT EXECUTE FUNCTION note_step();
	SELECT count(*) FROM es.command_log});
$node->append_conf('postgresql.conf', "es.command_retention = '1s'");
$node->reload;
await(q{SELECT count(*) = 0 FROM es.command_log}, 'and forgotten after es.command_retention');
is(sql(q{SELECT sum(n), max(n) <= 1000, count(*) >= 3 FROM step}), "$kept|t|t",
	'in steps that are small, each a transaction of its own');
sql('SET es.allow_destructive = on; DROP TRIGGER note_step ON es.command_log');
$node->append_conf('postgresql.conf', "es.command_retention = 0");
$node->reload;
as_clerk(q{SELECT es_append('bulk-1', 'X', command_id => gen_random_uuid())});
sleep 1;
is(sql(q{SELECT count(*) FROM es.command_log}), 1, 'which 0 turns off');

#
# The worker that came for timers alone goes when it has been idle for long, and
# no process runs for those who schedule nothing
#
is(sql(q{SELECT count(*) FROM es_stat_workers WHERE kind = 'projector' AND role <> 'clerk'}), 0,
	'there is a process only for who has something due');

$node->stop;
done_testing();
