# Behind pgbouncer in transaction pooling mode, where every transaction may run
# in another session: commands, reads and subscriptions need none of their own.

use strict;
use warnings;

use EsExample;
use EsNode;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

my $pgbouncer = (grep { -x } '/usr/sbin/pgbouncer', '/usr/bin/pgbouncer')[0]
  or plan skip_all => 'there is no pgbouncer here';

my $node = EsNode->create('pooled');
my $port = PostgreSQL::Test::Cluster::get_free_port();
my $directory = "$ENV{TESTDIR}/pgbouncer";
my $user = getpwuid($<);

# Three server connections for all clients.
mkdir $directory;
append_to_file("$directory/users", qq("$user" ""\n));
append_to_file("$directory/pgbouncer.ini", qq{
[databases]
postgres = host=@{[ $node->host ]} port=@{[ $node->port ]} dbname=postgres
[pgbouncer]
pool_mode = transaction
default_pool_size = 3
max_client_conn = 50
listen_addr =
listen_port = $port
unix_socket_dir = $directory
auth_type = trust
auth_file = $directory/users
logfile = $directory/log
pidfile = $directory/pid
ignore_startup_parameters = extra_float_digits
});
my $pid = EsExample::start("$directory/output", $pgbouncer, '-q', "$directory/pgbouncer.ini");
my $pooled = "host=$directory port=$port dbname=postgres user=$user";

END
{
	my $status = $?;

	EsExample::end($pid) if $pid;
	$? = $status;
}

# Run SQL through the pool.
sub sql
{
	my ($sql) = @_;
	my ($out, $err) = run_command([ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $pooled, '-c', $sql ]);

	die $err if $err =~ /ERROR|FATAL/;
	return $out;
}

for (1 .. 100)
{
	last if -S "$directory/.s.PGSQL.$port";
	usleep(50_000);
}
is(sql('SELECT 1'), 1, 'pgbouncer serves');

# Commands and reads.
$node->safe_psql('postgres', q{
	SELECT es_create_command('PLACE', 'order', 'ORDER_PLACED', creates => true);
	CREATE TABLE orders (id text PRIMARY KEY);
	SELECT es_create_projection('orders', 'INSERT INTO orders SELECT stream FROM es_batch', ARRAY['order'])});
is(sql(q{SELECT version || ' ' || events FROM es_submit('PLACE', '1')}), '1 1', 'commands work');
is(sql(q{SELECT stream FROM es_read(0)}), 'order-1', 'reads work');
is(sql(q{SELECT es_wait('orders', (SELECT max("position") FROM es_read(0, NULL)))}), 't', 'waiting works');
is(sql(q{SELECT id FROM orders}), 'order-1', 'and reads its own writes from a read model');
is(sql(q{BEGIN; SET LOCAL es.metadata = '{"user": "ann"}'; SELECT stream FROM (SELECT 'order-2' AS stream, es_append('order-2', 'ORDER_PLACED')) a; COMMIT}),
	'order-2', 'metadata is set for a transaction');
is(sql(q{SELECT metadata FROM es_stream('order-2')}), '{"user": "ann"}', 'and kept');

# Four consumers, more than there are sessions, each a client of its own.
$node->safe_psql('postgres', q{
	CREATE TABLE handled (id bigserial PRIMARY KEY, subscription text, consumer text, "position" bigint, stream text, version bigint);
	CREATE TABLE handed_out (id bigserial, subscription text, "position" bigint);
	CREATE TABLE acknowledged (id bigserial, subscription text, consumer text, "position" bigint);
	SELECT es_create_subscription('pooled', ARRAY['load'], partitions => 8, max_deliveries => 100);
	SELECT es_append('load-' || i % 40, 'WORK') FROM generate_series(1, 2000) i});
my $worker = EsExample::build('worker');
my $output = "$ENV{TESTDIR}/pooled.log";
my @workers = map { EsExample::start($output, $worker, $pooled, 'pooled', "c$_", 'exact') } 1 .. 4;
$node->poll_query_until('postgres', q{SELECT count(*) >= 2000 FROM handled});
$node->safe_psql('postgres', q{SELECT es_append('load-' || i % 40, 'WORK') FROM generate_series(1, 200) i});
$node->poll_query_until('postgres', q{SELECT count(*) >= 2200 FROM handled});
EsExample::end($_) for @workers;
is($node->safe_psql('postgres', q{SELECT count(*) || ' ' || count(DISTINCT "position") FROM handled}),
	'2200 2200', 'consumers of a subscription handle everything exactly once');
is($node->safe_psql('postgres', q{SELECT count(*) FROM (SELECT 1 FROM handled GROUP BY stream
	HAVING array_agg(version ORDER BY id) <> array_agg(version ORDER BY version)) s}),
	0, 'in the order of each stream');
is(slurp_file($output), '', 'without an error');

$node->stop;
done_testing();
