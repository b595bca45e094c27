# 006_bad_input.pl
#	  What must not be is refused, in words that help, and nothing is appended;
#	  what breaks stops no more than it has to.

use strict;
use warnings;

use EsClient;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $node = EsNode->create('bad', allows_streaming => 1, conf => q{
	max_worker_processes = 16
	es.max_payload_size = 10000});

$node->safe_psql('postgres', q{
	CREATE DOMAIN price AS numeric NOT NULL CHECK (VALUE >= 0);
	CREATE TYPE order_created AS (customer text, amount price);
	CREATE FUNCTION rich(state jsonb, command es.command) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		IF (command.payload->>'amount')::numeric > 100 THEN
			RAISE EXCEPTION 'nobody orders for %', command.payload->>'amount';
		END IF;
	END $$;
	SELECT es_create_command('CREATE_ORDER', 'order', 'ORDER_CREATED', creates => true,
		payload_type => 'order_created', validate => 'rich(jsonb, es.command)');
	SELECT es_create_command('SHIP_ORDER', 'order', 'ORDER_SHIPPED', creates => false);
	SELECT es_submit('CREATE_ORDER', 'one', '{"customer": "Ann", "amount": 1}',
		command_id => '00000000-0000-0000-0000-000000000001');

	CREATE ROLE nobody LOGIN;
	CREATE ROLE reader LOGIN;
	CREATE ROLE writer LOGIN;
	CREATE ROLE projector LOGIN;
	CREATE ROLE team NOLOGIN;
	SELECT es_grant('reader', 'reader'), es_grant('writer', 'writer'),
		es_grant('projector', 'projector'), es_grant('team', 'projector')});

#
# One line for each: what it is; the call; its SQLSTATE; what the error says, in
# its message, its detail and its hint
#

my $long = 'x' x 513;
my $large = '{"a": "' . ('x' x 10000) . '"}';

my @refused = (
	[ 'an unknown command', q{es_submit('FLY', 'one')}, 'ES003', qr/"FLY"/ ],
	[ 'creating what exists', q{es_submit('CREATE_ORDER', 'one', '{"customer": "Ann", "amount": 1}')},
		'ES002', qr/order "one" already exists.*version 1/s ],
	[ 'acting on what does not exist', q{es_submit('SHIP_ORDER', 'two')},
		'ES002', qr/order "two" does not exist/ ],
	[ 'a wrong expected version', q{es_submit('SHIP_ORDER', 'one', expected_version => 7)},
		'ES001', qr/"order-one".*xpected version 7, actual version 1/s ],
	[ 'a wrong expected version of es_append()', q{es_append('order-one', 'X', expected_version => 0)},
		'ES001', qr/"order-one".*xpected version 0, actual version 1/s ],
	[ 'a negative expected version', q{es_append('order-one', 'X', expected_version => -1)}, '22023', qr/-1/ ],
	[ 'a payload that is an array', q{es_submit('SHIP_ORDER', 'one', '[]')}, '22023', qr/object.*array/s ],
	[ 'a payload that is a scalar', q{es_append('order-one', 'X', '1')}, '22023', qr/object.*scalar/s ],
	[ 'a payload that is too large', qq{es_append('order-one', 'X', '$large')}, '54000', qr/es\.max_payload_size/ ],
	[ 'metadata that are no object', q{es_append('order-one', 'X', metadata => '[]')}, '22023', qr/object/ ],
	[ 'a payload that does not fit its type', q{es_submit('CREATE_ORDER', 'two', '{"customer": "Ann", "amount": "much"}')},
		'ES002', qr/order_created.*"amount"/s ],
	[ 'a payload that a domain refuses', q{es_submit('CREATE_ORDER', 'two', '{"customer": "Ann", "amount": -1}')},
		'ES002', qr/order_created.*"amount"/s ],
	[ 'a payload that lacks a key', q{es_submit('CREATE_ORDER', 'two', '{"customer": "Ann"}')},
		'ES002', qr/order_created.*"amount"/s ],
	[ 'a payload with an unknown key', q{es_submit('CREATE_ORDER', 'two', '{"customer": "Ann", "amount": 1, "amuont": 1}')},
		'ES002', qr/"amuont"/ ],
	[ 'a validator that raises', q{es_submit('CREATE_ORDER', 'two', '{"customer": "Ann", "amount": 101}')},
		'ES002', qr/nobody orders for 101/ ],
	[ 'a command id of another payload',
		q{es_submit('CREATE_ORDER', 'one', '{"customer": "Bob", "amount": 1}', command_id => '00000000-0000-0000-0000-000000000001')},
		'23505', qr/00000001.*CREATE_ORDER.*payload/s ],
	[ 'a command id of another aggregate',
		q{es_submit('CREATE_ORDER', 'two', '{"customer": "Ann", "amount": 1}', command_id => '00000000-0000-0000-0000-000000000001')},
		'23505', qr/00000001.*order-one/s ],
	[ 'an empty stream name', q{es_append('', 'X')}, '22023', qr/stream name/ ],
	[ 'an empty event type', q{es_append('a-1', '')}, '22023', qr/event type/ ],
	[ 'an empty command name', q{es_submit('', 'one')}, '22023', qr/command name/ ],
	[ 'an empty aggregate id', q{es_submit('SHIP_ORDER', '')}, '22023', qr/aggregate id/ ],
	[ 'no stream name', q{es_append(NULL, 'X')}, '22004', qr/stream name/ ],
	[ 'no payload', q{es_append('a-1', 'X', NULL)}, '22004', qr/payload/ ],
	[ 'a stream without a category', q{es_append('-1', 'X')}, '22023', qr/"-1"/ ],
	[ 'a stream name that is too long', qq{es_append('a-$long', 'X')}, '42622', qr/515 bytes/ ],
	[ 'an event type that is too long', qq{es_append('a-1', '$long')}, '42622', qr/513 bytes/ ],
	[ 'a command name that is too long', qq{es_create_command('$long', 'a', 'X')}, '42622', qr/513 bytes/ ],
	[ 'an aggregate id that is too long', qq{es_submit('SHIP_ORDER', '$long')}, '42622', qr/513 bytes/ ],
	[ 'an event without a type', q{es_append_batch('a-1', '[{"type": "X"}, {"payload": {}}]')}, '22023', qr/element 2.*"type"/s ],
	[ 'an event with an unknown key', q{es_append_batch('a-1', '[{"type": "X", "paylaod": {}}]')}, '22023', qr/element 1.*"paylaod"/s ],
	[ 'a list of no events', q{es_append_batch('a-1', '[]')}, '22023', qr/at least one/ ],
	[ 'a projection that commits', q{es_create_projection('p', 'COMMIT')}, '0A000', qr/COMMIT/ ],
	[ 'a batch of no size', q{es_create_projection('p', 'SELECT FROM es_batch', batch_size => 0)}, '22023', qr/0/ ]);

# Where the message says it all, and what PostgreSQL itself says.
my @in_short = (
	[ 'a command that exists', q{es_create_command('SHIP_ORDER', 'order', 'X')}, '42710', qr/"SHIP_ORDER"/ ],
	[ 'a command without an event', q{es_create_command('NEW', 'order')}, '22004', qr/event_type/ ],
	[ 'a payload type that is no row type', q{es_create_command('NEW', 'order', 'X', payload_type => 'int')}, '42809', qr/integer/ ],
	[ 'a projection that is empty', q{es_create_projection('p', '')}, '22023', qr/empty/ ],
	[ 'a projection that does not exist', q{es_pause('p')}, '42704', qr/"p"/ ],
	[ 'a projection that does not parse', q{es_create_projection('p', 'SELEKT 1')}, '42601', qr/SELEKT/ ],
	[ 'a projection of a missing table', q{es_create_projection('p', 'INSERT INTO missing SELECT position FROM es_batch')},
		'42P01', qr/"missing"/ ],
	[ 'a projection of a missing column', q{es_create_projection('p', 'SELECT price FROM es_batch')}, '42703', qr/"price"/ ]);

my $events = $node->safe_psql('postgres', 'SELECT count(*), max(position), es_settled() FROM es.event');
my $session = EsClient->connect($node, 'postgres');

for my $case (@refused, @in_short)
{
	my ($what, $call, $sqlstate, $words) = @$case;
	my $in_short = grep { $_ == $case } @in_short;

	subtest "$what is refused in words that help" => sub {
		my ($problem, $hint);

		eval { $session->selectrow_array("SELECT * FROM $call") };
		is($session->state, $sqlstate, "SQLSTATE $sqlstate");
		$problem = join("\n", map { $session->pg_error_field($_) // '' }
			  ('message_primary', 'message_detail', 'message_hint'));
		like($problem, $words, 'the error says what it is about');
		if (!$in_short)
		{
			ok($session->pg_error_field('message_detail'), 'there is a detail');
			ok($session->pg_error_field('message_hint'), 'there is a hint');
		}
	};
}

#
# Rights
#

sub denied
{
	my ($role, $what, $call, $words) = @_;
	my $as = EsClient->connect($node, 'postgres', user => $role);

	eval { $as->selectrow_array("SELECT * FROM $call") };
	is($as->state, '42501', "$what");
	like($as->errstr, $words, '... and the error says why');
	return;
}

denied('nobody', 'who was granted nothing cannot append',
	q{es_append('a-1', 'X')}, qr/permission denied for function es_append/);
denied('nobody', 'who was granted nothing cannot submit',
	q{es_submit('SHIP_ORDER', 'one')}, qr/permission denied for function es_submit/);
denied('nobody', 'who was granted nothing cannot read', 'es_read()', qr/permission denied/);
denied('reader', 'a reader cannot append', q{es_append('a-1', 'X')}, qr/permission denied/);
denied('writer', 'a writer cannot define a projection',
	q{es_create_projection('p', 'SELECT FROM es_batch')}, qr/permission denied/);
denied('projector', 'an owner of projections cannot append', q{es_append('a-1', 'X')}, qr/permission denied/);

eval {
	$session->do('SET ROLE team');
	$session->selectrow_array(q{SELECT es_create_projection('p', 'SELECT FROM es_batch')});
};
like($session->errstr, qr/role "team" cannot own a projection: it cannot log in/,
	'a role that cannot log in owns no projection');
$session->do('RESET ROLE');

is($node->safe_psql('postgres', 'SELECT count(*), max(position), es_settled() FROM es.event'),
	$events, 'after all that nothing was appended, not even a position was taken');
is($node->safe_psql('postgres', 'SELECT count(*) FROM es_projections'), 0,
	'nor was a projection left behind');

#
# A projection that fails on one event
#

my $projector = EsClient->connect($node, 'postgres', user => 'projector');
$projector->do(q{SELECT es_create_projection('curious', 'SELECT payload FROM es_batch, es.command_log')});
ok($node->poll_query_until('postgres', q{SELECT status = 'stopped' FROM es_projections}),
	'a projection that reads what its owner may not read stops');
is($projector->selectrow_array('SELECT last_error_sqlstate FROM es_projections'), '42501',
	'... and says so to its owner');
$projector->do(q{SELECT es_drop_projection('curious')});

$node->safe_psql('postgres', q{
	CREATE TABLE inverse (position bigint PRIMARY KEY, value numeric);
	SELECT es_create_projection('inverse', $$
		INSERT INTO inverse SELECT position, 1 / (payload->>'n')::numeric FROM es_batch
		 WHERE type = 'NUMBER' $$);
	CREATE TABLE number (position bigint PRIMARY KEY, n numeric);
	SELECT es_create_projection('number', $$
		INSERT INTO number SELECT position, (payload->>'n')::numeric FROM es_batch
		 WHERE type = 'NUMBER' $$)});

# Sixty good ones with a bad one among them, in one batch.
my ($bad, $last) = split /\|/, $node->safe_psql('postgres', q{
	SELECT first_position + 36, last_position FROM es_append_batch('number-1', (
		SELECT jsonb_agg(jsonb_build_object('type', 'NUMBER', 'payload', jsonb_build_object('n', n - 37)))
		  FROM generate_series(1, 61) n))});

ok($node->wait_caught_up('postgres', 'number'), 'a projection of the same owner goes on while another one fails');
ok($node->poll_query_until('postgres', q{
		SELECT status = 'stopped' FROM es_projections WHERE name = 'inverse'}),
	'a projection that fails on an event stops');
is($node->safe_psql('postgres', q{
		SELECT last_error_position, last_error_sqlstate, position FROM es_projections WHERE name = 'inverse'}),
	"$bad|22012|" . ($bad - 1), 'it stops at that very event, and says where');
like($node->safe_psql('postgres', q{SELECT last_error FROM es_projections WHERE name = 'inverse'}),
	qr/division by zero/, 'it says why');
is($node->safe_psql('postgres', 'SELECT count(*) FROM inverse'), 36,
	'what stands before the event in its batch is applied');
is($node->safe_psql('postgres', q{SELECT last_error IS NULL FROM es_projections WHERE name = 'number'}),
	't', 'others have no error');
eval { $session->selectrow_array("SELECT es_wait('inverse', $last)") };
is($session->state, '55000', 'who waits for a projection that has stopped is told so');
like($session->errstr, qr/projection "inverse" has stopped at position $bad.*division by zero.*es_resume/s,
	'... with the position, the reason and what to do');
is( $node->safe_psql('postgres', q{SELECT count(*) > 0 FROM es_append('number-1', 'NUMBER', '{"n": 5}')}),
	't', 'appending does not depend on it');
ok($node->log_has(qr/projection "inverse" stopped at position $bad: division by zero/), 'the log has it');

$node->restart;
$session = EsClient->connect($node, 'postgres');
is($node->safe_psql('postgres', q{
		SELECT status, last_error_position FROM es_projections WHERE name = 'inverse'}),
	"stopped|$bad", 'a projection that has stopped is so after a restart, too');

# The read model is repaired: it learns what the inverse of zero is.
$node->safe_psql('postgres', q{
	CREATE FUNCTION inverse_of(n numeric) RETURNS numeric LANGUAGE sql
		AS 'SELECT CASE WHEN n = 0 THEN NULL ELSE 1 / n END';
	SELECT es_drop_projection('number')});
my $query = q{INSERT INTO inverse SELECT position, inverse_of((payload->>'n')::numeric) FROM es_batch WHERE type = 'NUMBER'};
$node->safe_psql('postgres', qq{
	SELECT position AS at FROM es_projections WHERE name = 'inverse' \\gset
	SELECT es_drop_projection('inverse');
	SELECT es_create_projection('inverse', '} . $query =~ s/'/''/gr . qq{', start_after => :at)});
ok($node->wait_caught_up('postgres', 'inverse'), 'a projection that was mended goes on where it stopped');
is($node->safe_psql('postgres', q{
		SELECT count(*) FROM inverse i FULL JOIN (SELECT position FROM es.event WHERE type = 'NUMBER') e USING (position)
		 WHERE i.position IS NULL OR e.position IS NULL}),
	0, 'and has applied each event once');

# The same without a new projection: what fails is a table that is gone.
$node->safe_psql('postgres', q{
	ALTER TABLE inverse RENAME TO hidden;
	SELECT es_append('number-1', 'NUMBER', '{"n": 6}')});
ok($node->poll_query_until('postgres', q{SELECT status = 'stopped' FROM es_projections}),
	'a projection whose table is gone stops');
is($node->safe_psql('postgres', 'SELECT last_error_sqlstate FROM es_projections'), '42P01', 'and says so');
$node->safe_psql('postgres', q{ALTER TABLE hidden RENAME TO inverse; SELECT es_resume('inverse')});
ok($node->wait_caught_up('postgres', 'inverse'), 'es_resume() lets it try again at once');
$node->safe_psql('postgres', q{
	ALTER TABLE inverse RENAME TO hidden;
	SELECT es_append('number-1', 'NUMBER', '{"n": 7}')});
$node->poll_query_until('postgres', q{SELECT retries > 0 FROM es_projections});
$node->safe_psql('postgres', 'ALTER TABLE hidden RENAME TO inverse');
ok($node->poll_query_until('postgres', q{SELECT status = 'caught up' FROM es_projections}),
	'without es_resume() it tries again by itself');
is($node->safe_psql('postgres', q{
		SELECT count(*) FROM inverse i FULL JOIN (SELECT position FROM es.event WHERE type = 'NUMBER') e USING (position)
		 WHERE i.position IS NULL OR e.position IS NULL}),
	0, 'nothing was applied twice');

#
# A NOTIFY queue that takes no more
#

my $listener = EsClient->connect($node, 'postgres');
$listener->do('LISTEN es');
$listener->begin_work;
$listener->selectrow_array('SELECT 1');

# The queue keeps what the sleeping listener has not read, in a few pages of
# memory and then in files, which it cannot write any more.
my $directory = $node->data_dir . '/pg_notify';
chmod 0000, $directory or die "$directory: $!";
for my $size (7900, 100)
{
	my $sent = 0;

	$sent++ while $sent < 1000
	  && eval { $session->do("SELECT pg_notify('noise', repeat('x', $size))"); 1 };
	isnt($sent, 1000, "the queue takes no more messages of $size bytes");
}

my $log = $node->log_end;
is($node->safe_psql('postgres', q{
		SELECT position FROM es_append('number-1', 'NUMBER', '{"n": 8}') \gset
		SELECT es_wait('inverse', :position, '60 s')}),
	't', 'while nobody can notify, events are appended and applied');
ok($node->poll_query_until('postgres', q{
		SELECT position = es_settled() FROM es.settled}),
	'... and the settled position is written down');
$node->safe_psql('postgres', q{SELECT es_append('number-1', 'NUMBER', '{"n": 9}')}) for 1 .. 3;
ok($node->poll_query_until('postgres', q{
		SELECT position = es_settled() FROM es.settled}),
	'... each time');
my @complaints = slurp_file($node->logfile, $log) =~ /LOG:  could not announce new events/g;
is(scalar(@complaints), 1, 'the log says once that nothing can be announced');

chmod 0700, $directory or die "$directory: $!";
$listener->rollback;
sub heard
{
	my ($position) = @_;
	my $deadline = time + $EsNode::patience;

	while (time < $deadline)
	{
		$listener->ping;
		while (my $notification = $listener->pg_notifies)
		{
			return 1
			  if $notification->[0] eq 'es'
			  and $notification->[2] =~ /"position":(\d+)\}$/
			  and $1 >= $position;
		}
		usleep(20_000);
	}
	return 0;
}
ok(heard($node->safe_psql('postgres', 'SELECT max(position) FROM es.event')),
	'what could not be announced is announced later');

#
# A hot standby
#

$node->backup('base');
my $standby = EsNode->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->safe_psql('postgres', q{SELECT es_append('number-2', 'NUMBER', '{"n": 1}')}) for 1 .. 3;
$node->poll_query_until('postgres', 'SELECT position = es_settled() FROM es.settled');
$node->wait_for_catchup($standby, 'replay');

my $on_standby = EsClient->connect($standby, 'postgres');
for my $call (q{es_append('a-1', 'X')}, q{es_append_batch('a-1', '[{"type": "X"}]')},
	q{es_submit('SHIP_ORDER', 'one')}, q{es_create_command('X', 'x', 'X')},
	q{es_create_projection('p', 'SELECT FROM es_batch')}, q{es_drop_projection('inverse')},
	q{es_resume('inverse')}, q{es_activate()})
{
	eval { $on_standby->selectrow_array("SELECT * FROM $call") };
	is($on_standby->state, '25006', "on a standby, $call is refused as a write");
}
for my $query ('SELECT es_settled()', 'SELECT es_epoch()',
	'SELECT count(*), max(position) FROM es_read(0, NULL)',
	q{SELECT count(*) FROM es_stream('number-2')},
	'SELECT name, position, status FROM es_projections',
	'SELECT count(*), sum(position) FROM inverse')
{
	is_deeply($on_standby->selectrow_arrayref($query),
		EsClient->connect($node, 'postgres')->selectrow_arrayref($query),
		"a standby answers as the primary does: $query");
}

my $position = $node->safe_psql('postgres', q{SELECT position FROM es_append('number-2', 'NUMBER', '{"n": 2}')});
my $began = time;
is($on_standby->selectrow_array("SELECT es_wait('inverse', $position, '60 s')"), 1,
	'es_wait() on a standby waits for the read model to be replayed');
cmp_ok(time - $began, '<', 50, '... and no longer');
is($on_standby->selectrow_array(q{SELECT es_wait('inverse', 1000000, '50 ms')}), 0,
	'es_wait() on a standby ends with its timeout, too');

my $epoch = $on_standby->selectrow_array('SELECT es_epoch()');
my $settled = $node->safe_psql('postgres', 'SELECT es_settled()');
$node->wait_for_catchup($standby, 'replay');
$node->stop;
$standby->promote;
cmp_ok($standby->safe_psql('postgres', q{SELECT position FROM es_append('number-2', 'NUMBER', '{"n": 3}')}),
	'>', $settled, 'after its promotion a standby takes events, behind all that were settled');
ok($standby->wait_caught_up('postgres', 'inverse'), '... and applies them');
isnt($standby->safe_psql('postgres', 'SELECT es_epoch()'), $epoch, '... in an epoch of its own');
is($standby->safe_psql('postgres', q{
		SELECT count(*) FROM inverse i FULL JOIN (SELECT position FROM es.event WHERE type = 'NUMBER') e USING (position)
		 WHERE i.position IS NULL OR e.position IS NULL}),
	0, '... each once');
$standby->stop;

done_testing();
