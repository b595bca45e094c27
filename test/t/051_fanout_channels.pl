# Channels: who is told what, and that telling never stands in an appender's way.

use strict;
use warnings;

use EsExample;
use EsListener;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

# Commits can wait for a standby, but only those that ask for it.
my $node = EsNode->create('channels',
	allows_streaming => 1, conf => "synchronous_commit = local\n");

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Wait until a query returns true.
sub wait_until
{
	my ($query) = @_;

	return $node->poll_query_until('postgres', $query);
}

sql(q{SELECT es_create_channel('orders', ARRAY['order'])});
sql(q{SELECT es_create_channel('shipped', ARRAY['order'], ARRAY['ORDER_SHIPPED'])});
my $listener = EsListener->new($node, 'postgres', 'es', 'orders', 'shipped');

# One transaction, so one batch.
sql(q{SELECT es_append('order-' || i % 3, CASE WHEN i = 4 THEN 'ORDER_SHIPPED' ELSE 'ORDER_PLACED' END),
			 es_append('customer-' || i, 'CUSTOMER_MOVED') FROM generate_series(1, 5) i});
$listener->wait_for(qr/"es" with payload/);
my $epoch = sql('SELECT es_epoch()');
is_deeply([ $listener->messages('orders') ],
	[ qq({"epoch":"$epoch","from":1,"position":9,"count":5}) ],
	'a channel tells of the events of its categories, once a batch');
is_deeply([ $listener->messages('shipped') ],
	[ qq({"epoch":"$epoch","from":7,"position":7,"count":1}) ],
	'and of its types');
is_deeply([ $listener->messages('es') ],
	[ qq({"epoch":"$epoch","position":10}) ],
	'channel "es" tells how far the log is settled');

$listener->forget;
sql(q{SELECT es_append('customer-1', 'CUSTOMER_MOVED')});
$listener->wait_for(qr/"es" with payload/);
is_deeply([ $listener->messages('orders') ], [],
	'a channel is silent when there is nothing for it');
my $counts = q{SELECT string_agg(concat_ws(' ', name, notifications, events, "position"), ', ' ORDER BY name) FROM es_channels};
# They are written down after the listeners are told.
$node->poll_query_until('postgres', $counts, 'es 2 11, orders 1 5 9, shipped 1 1 7');
is(sql($counts), 'es 2 11, orders 1 5 9, shipped 1 1 7', 'es_channels counts');

# An interval joins what happens in it.
$listener->forget;
sql(q{ALTER SYSTEM SET es.notify_interval = '400 ms'});
$node->reload;
sql(q{SELECT es_append('order-1', 'ORDER_PLACED')}) for 1 .. 10;
wait_until(q{SELECT events = 15 FROM es_channels WHERE name = 'orders'});
cmp_ok(sql(q{SELECT notifications FROM es_channels WHERE name = 'orders'}), '<', 11,
	'es.notify_interval bounds the rate of notifications');
sql(q{ALTER SYSTEM RESET es.notify_interval});
$node->reload;

# A rolled back event is not announced, and what commits late is.
$listener->forget;
sql(q{BEGIN; SELECT es_append('order-8', 'ORDER_SHIPPED'); ROLLBACK});
sql(q{SELECT es_append('order-9', 'ORDER_SHIPPED')});
$listener->wait_for(qr/"shipped" with payload/);
like(join(' ', $listener->messages('shipped')), qr/"count":1\}$/,
	'an event that was rolled back is not announced');

# A channel tells of the events of the transaction that makes it.
$listener->run('LISTEN early');
$listener->forget;
sql(q{BEGIN; SELECT es_append('early-1', 'CAME'), es_create_channel('early', types => ARRAY['CAME']); COMMIT});
$listener->wait_for(qr/"early" with payload.*"count":1\}/);
pass('a channel tells of events that are committed with it');

# Who drops a channel and does not commit holds up nobody.
my $dropper = EsListener->new($node, 'postgres');
$dropper->run(q{BEGIN; SELECT es_drop_channel('early')});
$listener->forget;
sql(q{SELECT es_append('order-1', 'CAME')});
$listener->wait_for(qr/"early" with payload.*"count":1\}/);
wait_until(q{SELECT events = 2 FROM es_channels WHERE name = 'early'});
is(sql('SELECT es.notify_failures()'), 0, 'a channel that is being dropped holds no announcement up');
$dropper->run('COMMIT');
$dropper->finish;
sql(q{SELECT es_create_channel('early')});
is(sql(q{SELECT events FROM es_channels WHERE name = 'early'}), 0, 'and one of the same name begins to count anew');
$listener->forget;
sql(q{SELECT es_append('order-1', 'CAME')});
wait_until(q{SELECT events = 1 AND notifications = 1 FROM es_channels WHERE name = 'early'});
sql(q{SELECT es_drop_channel('early')});

# A listener that sleeps in a transaction: appends go on.
my $sleeper = EsListener->new($node, 'postgres', 'es');
$sleeper->run('BEGIN; SELECT 1;');
sql(q{SELECT es_append('order-1', 'ORDER_PLACED') FROM generate_series(1, 100)});
$listener->wait_for(qr/"orders" with payload.*"count":100\}/);
pass('a listener that sleeps in a transaction hinders nobody');
$sleeper->finish;

# Announcing fails: here because another session's commit, which notifies too,
# waits for a standby that does not come, and holds the lock of all notifiers.
$node->append_conf('postgresql.conf', "synchronous_standby_names = 'nobody'\n");
$node->reload;
wait_until(q{SELECT current_setting('synchronous_standby_names') = 'nobody'});
$listener->forget;
my $stuck = IPC::Run::start(
	[ 'psql', '-Xq', '-d', $node->connstr('postgres'),
		'-c', 'SET synchronous_commit = on', '-c', 'CREATE TABLE stuck (); NOTIFY other' ],
	'>', \my $out, '2>', \my $err);
wait_until(q{SELECT true FROM pg_stat_activity WHERE wait_event = 'SyncRep'});
my $first = sql(q{SELECT "position" FROM es_append('order-5', 'ORDER_SHIPPED')});
wait_until(q{SELECT es.notify_failures() >= 1});
sql(q{SELECT es_append('order-6', 'ORDER_SHIPPED')});
wait_until(q{SELECT es.notify_failures() >= 2});
pass('an announcement that fails is counted, and appends do not wait for it');
is(sql(qq{SELECT count(*) FROM es_read($first - 1)}), 2, 'nor do readers');
is(sql(qq{SELECT "position" > $first FROM es.settled}), 't',
	'and the settled position is still written down');
is_deeply([ $listener->messages('shipped') ], [], 'though nobody is told');
like(sql(q{SELECT last_error FROM es_channels WHERE name = 'es'}), qr/lock timeout/,
	'es_channels says why');
like(sql('SELECT ok, problems FROM es_health()'),
	qr/^f\|.*New events cannot be announced since \d+ seconds: .*lock timeout/, 'es_health() says so');
ok($node->log_has(qr/could not announce new events/), 'and so does the log');
sql(q{SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'});
$stuck->finish;
$listener->wait_for(qr/"shipped" with payload.*"count":2\}/);
pass('what was not announced is announced as soon as that is possible');
$node->poll_query_until('postgres', 'SELECT ok FROM es_health()');
is(sql('SELECT problems FROM es_health()'), '{}', 'and es_health() has nothing to say any more');
$listener->finish;
$node->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");

# After a restart the channels are there, and what was announced is not again.
$node->restart;
$listener = EsListener->new($node, 'postgres', 'orders');
sql(q{SELECT es_append('order-7', 'ORDER_PLACED')});
$listener->wait_for(qr/"orders" with payload/);
like(($listener->messages('orders'))[0], qr/"count":1\}$/,
	'a restart announces what is new and no more');
$listener->finish;

# A copy that was not activated tells nobody.
sql('CHECKPOINT');
sql('CREATE DATABASE copy TEMPLATE postgres');
$listener = EsListener->new($node, 'copy', 'es', 'orders');
$node->safe_psql('copy', q{SELECT es_append('order-1', 'ORDER_PLACED')});
$node->poll_query_until('copy', q{SELECT "position" = es_settled() FROM es.settled});
$listener->run('SELECT');
is_deeply([ $listener->messages('es') ], [], 'a copy announces nothing before es_activate()');
$listener->run('SELECT es_activate()');
$node->safe_psql('copy', q{SELECT es_append('order-1', 'ORDER_PLACED')});
$listener->wait_for(qr/"orders" with payload/);
pass('and does after it');
$listener->finish;

# How long it takes, beside what PostgreSQL itself needs.
my $latency = EsExample::build('latency');
sql('CREATE TABLE bare (n integer)');
my ($printed) = run_command([ $latency, $node->connstr('postgres'), 100 ]);
my %median = map { (split)[0] => [ (split)[ 1, 2 ] ] } split /\n/, $printed;
diag(sprintf("notification on an idle server, median in us from send / from acknowledgement: "
			. "append %d / %d, bare NOTIFY in an INSERT %d / %d",
		map { @{ $median{$_} } } qw(append bare)));
ok($median{append}[0] > 0 && $median{bare}[0] > 0, 'both latencies were measured');

$node->stop;
done_testing();
