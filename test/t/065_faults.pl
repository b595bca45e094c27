#
# The fault matrix: clients work while something goes wrong, and afterwards
# nothing is lost, nothing is there twice, and every invariant holds.
#
#	ES_FAULT_SEED	what the clients do follows from it (default: 1)
#	ES_FAULT_ONLY	a pattern: only faults whose names match
#	ES_FAULT_LONG	1: all faults, and more rounds of each (make test-faults)
#
# The faults at places in the code need a library that is built with ES_DEBUG.
#
use strict;
use warnings;
use EsClient;
use EsFaults;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

my $long = $ENV{ES_FAULT_LONG};
my $seed = $ENV{ES_FAULT_SEED} // 1;
my $only = $ENV{ES_FAULT_ONLY};
my $dir = PostgreSQL::Test::Utils::tempdir;
my ($libdir) = run_command([ 'pg_config', '--pkglibdir' ]);
my $began = time;

note("seed $seed");

# Build with the places compiled in.  Speed does not matter here.
system_or_bail('cp', '-r', '.', "$dir/debug");
system_or_bail('make', '-s', '-C', "$dir/debug", 'clean', 'PG_CONFIG=' . ($ENV{PG_CONFIG} // 'pg_config'));
system_or_bail('make', '-s', '-j2', '-C', "$dir/debug", 'install', 'ES_DEBUG=1', 'COPT=-O0',
	"DESTDIR=$dir/stage", 'PG_CONFIG=' . ($ENV{PG_CONFIG} // 'pg_config'));
my $conf = qq{
extension_destdir = '$dir/stage'
dynamic_library_path = '$dir/stage$libdir:$libdir'
restart_after_crash = on
max_connections = 50
autovacuum = off
log_statement = none
log_min_messages = warning
};

my $node = EsNode->create('main', allows_streaming => 1, has_archiving => 1, conf => $conf, start => 0);
$node->start;
$node->safe_psql('postgres', 'CREATE EXTENSION es');
my $faults = EsFaults->new($node, "$dir/faults", $seed);
$faults->prepare;

# Run a scenario, and judge it.
sub scenario
{
	my ($name, $code, %params) = @_;

	return if $only && $name !~ /$only/;
	$faults->start($name, %params);
	$code->();
	my $verdict = $faults->finish(%params);
	is_deeply($verdict->{violations}, [], "$name: nothing is lost or repeated, and all invariants hold");
	cmp_ok($verdict->{acknowledged}, '>', 0, "$name: the clients got something done");
	return $verdict;
}

# Faults at places: each is armed after some more visits than the one before.
sub at_places
{
	my ($action, @places) = @_;

	foreach my $round (1 .. ($long ? 5 : 1))
	{
		foreach my $place (@places)
		{
			$faults->arm($place, $action, $place =~ /launcher/ ? 0 : ($seed + $round * 3) % 7);
			ok($faults->wait_fired, "$action at $place: it happened");
			usleep(50_000);
			ok($faults->wait_back, "$action at $place: the server is back")
			  or BAIL_OUT('the server does not come back');
		}
	}
	return;
}

sub worker
{
	my ($kind) = @_;

	return $node->worker_pid($kind, 'postgres');
}

# An error of a client that must not end the test.
sub try_sql
{
	my ($session, @statements) = @_;

	foreach my $statement (@statements)
	{
		eval { $session->do($statement); 1 } or return $session->state;
	}
	return '';
}

scenario('nothing', sub { $faults->round; $faults->work(0.7) });

# ----------------------------------------------------------------------
# Faults at places in the code
# ----------------------------------------------------------------------

scenario('kill -9 backend in append', sub {
	at_places('kill', 'append.locked', 'append.positions', 'append.rows', 'append.done', 'submit.recorded') });
scenario('kill -9 backend at commit', sub { at_places('kill', 'commit.before', 'commit.visible') });
scenario('kill -9 projector at model, checkpoint, commit', sub {
	at_places('kill', 'projector.model', 'projector.checkpoint', 'projector.committed') });
scenario('kill -9 scheduler before and after commit', sub {
	at_places('kill', 'scheduler.settled', 'scheduler.announced') });
scenario('error in append', sub {
	at_places('error', 'append.positions', 'append.rows', 'append.done', 'commit.before') });
scenario('error in projector', sub { at_places('error', 'projector.model', 'projector.checkpoint') });
# As when the queue of NOTIFY is full: the announcement fails at its commit.
scenario('error in announcement', sub { at_places('error', 'scheduler.settled', 'scheduler.announced') });
scenario('kill -9 postmaster', sub {
	foreach my $place ($long ? ('append.rows', 'commit.visible', 'projector.checkpoint', 'scheduler.settled') : 'append.rows')
	{
		$faults->arm($place, 'postmaster', $seed % 5);
		ok($faults->wait_fired, "kill -9 of the postmaster at $place: it happened");
		$node->{_pid} = undef;
		# Its children must first notice, and let go of the shared memory.
		foreach my $attempt (1 .. 100)
		{
			usleep(100_000);
			last if PostgreSQL::Test::Utils::system_log('pg_ctl', '-w', '-t', 30, '-D', $node->data_dir,
				'-l', $node->logfile, 'start') == 0;
		}
		$node->_update_pid(1);
		$faults->wait_back;
	} });

# ----------------------------------------------------------------------
# What administrators, kernels and users do
# ----------------------------------------------------------------------

scenario('immediate shutdown', sub {
	foreach (1 .. ($long ? 5 : 1))
	{
		$faults->work(0.4);
		$faults->round;
		$node->stop('immediate');
		$node->start;
		$faults->wait_back;
	} });

scenario('pg_cancel_backend, pg_terminate_backend on workers', sub {
	foreach my $round (1 .. ($long ? 10 : 2))
	{
		foreach my $kind ('projector', 'scheduler', 'launcher')
		{
			foreach my $function ('pg_cancel_backend', 'pg_terminate_backend')
			{
				$faults->round;
				$node->safe_psql('postgres', "SELECT $function(" . worker($kind) . ')');
				$faults->work(0.05);
			}
		}
	} });

scenario('kill -9 workers', sub {
	foreach my $kind ($long ? ('projector', 'scheduler', 'launcher') x 3 : 'launcher')
	{
		$faults->round;
		kill 'KILL', worker($kind);
		usleep(50_000);
		$faults->wait_back;
	} });

scenario('SIGSTOP of a projector', sub {
	my $pid = worker('projector');

	$faults->round;
	kill 'STOP', $pid;
	$faults->work($long ? 20 : 1);
	my $version = $node->safe_psql('postgres', q{SELECT version FROM es_append('acc-1', 'E')});
	cmp_ok($version, '>', 0, 'SIGSTOP of a projector: appends go on');
	kill 'CONT', $pid });

scenario('SIGSTOP of the scheduler', sub {
	my $pid = worker('scheduler');

	$faults->round;
	kill 'STOP', $pid;
	$faults->work($long ? 20 : 1);
	kill 'CONT', $pid });

scenario('restart with idle appenders in transaction', sub {
	foreach my $mode ('fast', $long ? 'immediate' : ())
	{
		my @idle = map { EsClient->connect($node, 'postgres') } 1 .. 3;

		foreach my $session (@idle)
		{
			$session->begin_work;
			$session->do(q{SELECT es_append('idle-' || pg_backend_pid(), 'E')});
		}
		$faults->work(0.3);
		$faults->round;
		$node->restart($mode);
		is($node->safe_psql('postgres', q{SELECT count(*) FROM es.event WHERE category = 'idle'}),
			'0', 'restart with idle appenders: what they had not committed is not there');
		$faults->wait_back;
	} });

scenario('lock and statement timeouts of roles', sub {
	$node->safe_psql('postgres', q{
		ALTER ROLE client SET statement_timeout = '5ms'; ALTER ROLE client SET lock_timeout = '2ms';
		ALTER ROLE owner SET statement_timeout = '1ms'; ALTER ROLE owner SET lock_timeout = '1ms';
		ALTER ROLE owner SET idle_in_transaction_session_timeout = '1ms'});
	foreach (1 .. ($long ? 10 : 2))
	{
		$faults->round;
		$node->safe_psql('postgres', q{SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE usename IN ('client', 'owner')});
		$faults->work(0.3);
	}
	$node->safe_psql('postgres', q{ALTER ROLE client RESET ALL; ALTER ROLE owner RESET ALL;
		SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IN ('client', 'owner')}) });

scenario('a deadlock of a user with a projector', sub {
	my $user = EsClient->connect($node, 'postgres');
	my $rounds = 0;

	# The projector writes ledger, then tally; the user the other way round.
	foreach my $attempt (1 .. ($long ? 30 : 6))
	{
		my $state = try_sql($user, 'BEGIN', 'SELECT FROM tally FOR UPDATE', q{SET LOCAL deadlock_timeout = '10ms'},
			'SELECT pg_sleep(0.05)', 'LOCK TABLE ledger IN EXCLUSIVE MODE', 'COMMIT');
		$faults->round;
		$rounds++ if $state eq '40P01';
		$user->do('ROLLBACK') if $state;
	}
	cmp_ok($rounds, '>', 0, 'a deadlock of a user with a projector: there was one');
	$user->disconnect });

scenario('a poison event', sub {
	$faults->round;
	$node->safe_psql('postgres', q{SELECT es_append('poison-1', 'POISON')});
	$faults->work(0.5) });
$only or is($node->safe_psql('postgres', q{
		SELECT string_agg(name || ' ' || (status = 'stopped'), ', ' ORDER BY name) FROM es_projections
		 WHERE mode = 'async'}),
	'by_stream false, fragile true, ledger false', 'a poison event stops its own projection and no other');

scenario('max_worker_processes exhausted', sub {
	$faults->round;
	$node->append_conf('postgresql.conf', 'max_worker_processes = 3');
	$node->restart;
	$faults->work(1);
	$node->append_conf('postgresql.conf', 'max_worker_processes = 16');
	$node->restart;
	$faults->wait_back });

# ----------------------------------------------------------------------
# What takes longer
# ----------------------------------------------------------------------

if ($long)
{
	# The standby takes over; what was acknowledged is there if it is synchronous.
	foreach my $mode ('synchronous', 'asynchronous')
	{
		my $name = "failover to a standby, $mode";
		my $standby = EsNode->new("standby_$mode");

		$node->backup("for_$mode");
		$standby->init_from_backup($node, "for_$mode", has_streaming => 1);
		$standby->append_conf('postgresql.conf', "cluster_name = 'standby_$mode'\n");
		$standby->start;
		if ($mode eq 'synchronous')
		{
			$node->append_conf('postgresql.conf', "synchronous_standby_names = 'standby_$mode'\n");
			$node->reload;
			$node->poll_query_until('postgres', q{SELECT sync_state = 'sync' FROM pg_stat_replication}) or die;
		}
		my $epoch = $node->safe_psql('postgres', 'SELECT es_epoch()');
		$faults->start($name);
		$faults->work(2);
		$faults->round;
		$node->kill9;
		$standby->promote;
		# The clients find the new primary under the old name.
		$node->{_failed_over} = 1;
		my $old = $node;
		$node = $standby;
		$faults->{node} = $standby;
		my $verdict = $faults->finish(may_lose => $mode eq 'asynchronous');
		is_deeply($verdict->{violations}, [], "$name: nothing else is lost or repeated, and all invariants hold");
		isnt($node->safe_psql('postgres', 'SELECT es_epoch()'), $epoch, "$name: the epoch is another");
		$node->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");
		$node->reload;
	}
}

diag("\n" . $faults->matrix . sprintf("(seed %d, %.0f s)", $seed, time - $began));
$node->stop;
done_testing();
