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

# Build with the places compiled in: the files that have any.
system_or_bail('cp', '-rp', '.', "$dir/debug");
unlink map { "$dir/debug/$_" } 'es.so', map { s/c$/o/r } grep { slurp_file($_) =~ /ES_FAULT|ES_DEBUG/ }
  glob('src/*.c src/*/*.c');
system_or_bail('make', '-s', '-j2', '-C', "$dir/debug", 'install', 'ES_DEBUG=1', 'COPT=-O0 ' . ($ENV{COPT} // ''),
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
	my $verdict = $faults->finish;
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

# Workers share partitions out by what each has learnt of them.  One that is slow
# to hear that a partition is far behind must not let the others believe it when
# it is not any more: each would take the next partition for somebody else's.
if (!$only || 'a share that two workers see differently' =~ /$only/)
{
	my $session;
	my $row = q{es.checkpoint WHERE projection = 'split' AND partition = 0};
	my $streams = q{SELECT min('s-' || g) FILTER (WHERE es.stream_partition('s-' || g, 2) = %d) FROM generate_series(1, 20) g};

	$node->safe_psql('postgres', 'CREATE DATABASE share');
	$node->safe_psql('share', q{
		CREATE EXTENSION es;
		CREATE TABLE seen ("position" bigint);
		SELECT es_create_projection('split', $$
			INSERT INTO seen SELECT "position" FROM es_batch; SELECT pg_advisory_xact_lock_shared(1)$$, partitions => 2);
		SELECT es_append('s-' || g, 'E') FROM generate_series(1, 20) g});
	my ($first, $second) = map { $node->safe_psql('share', sprintf($streams, $_)) } 0, 1;
	ok($node->wait_caught_up('share', 'split'), 'a share that two workers see differently: it begins well');
	ok($node->poll_query_until('share', q{SELECT count(*) = 2 FROM es_stat_workers WHERE kind = 'projector'}),
		'... with two workers');
	$session = EsClient->connect($node, 'share');
	$session->do('SELECT pg_advisory_lock(1)');
	$faults->arm('projector.take', 'sleep', 0);
	$session->do("SELECT es_append('$first', 'E')");
	ok($faults->wait_fired, '... one is about to apply');
	$session->do($row =~ s/^\S+/UPDATE es.checkpoint SET catching_up = true/r);
	ok($node->poll_query_until('share', q{SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}),
		'... does so');
	$session->do('SELECT es_activate()');
	usleep(500_000);
	my ($position) = $session->selectrow_array(qq{SELECT "position" FROM es_append('$second', 'E')});
	$session->do('SELECT pg_advisory_unlock(1)');
	is($node->safe_psql('share', "SELECT es_wait('split', $position, '10 s')"), 't',
		'... while the other has learnt what is true no more; and no partition is left to nobody');
	is($node->safe_psql('share', "SELECT catching_up FROM $row"), 'f', '... nor believed to be far behind');
	$session->disconnect;
	$node->safe_psql('postgres', 'DROP DATABASE share');
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

scenario('kill -9 projector in a timer', sub { at_places('kill', 'timer.submitted', 'timer.committed') },
	operations => [ [ schedule => 50 ], [ append => 30 ], [ submit => 20 ] ]);
scenario('kill -9 projector in the merge of a rebuild', sub {
	foreach my $round (1 .. ($long ? 5 : 1))
	{
		$faults->arm('projector.merged', 'kill', 0);
		$node->safe_psql('postgres', q{SET ROLE owner; SELECT es_rebuild('by_stream')});
		ok($faults->wait_fired, 'kill at projector.merged: it happened');
		ok($faults->wait_back, 'kill at projector.merged: the server is back')
		  or BAIL_OUT('the server does not come back');
		ok($node->poll_query_until('postgres', 'SELECT bool_and(finished_at IS NOT NULL) FROM es.rebuild'),
			'kill at projector.merged: the rebuild comes to its end');
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

scenario('more than 64 subtransactions', sub { $faults->round; $faults->work($long ? 10 : 1) },
	operations => [ [ subtransactions => 60 ], [ append => 40 ] ]);

# The queue keeps what a listener that sleeps in a transaction has not read, in a
# few pages of memory and then in files, which it cannot write here.
scenario('the queue of NOTIFY is full', sub {
	my $directory = $node->data_dir . '/pg_notify';
	my $offset = $node->log_end;
	my ($listener, $talker) = map { EsClient->connect($node, 'postgres') } 1 .. 2;

	$listener->do('LISTEN es');
	$listener->begin_work;
	$listener->selectrow_array('SELECT 1');
	chmod 0000, $directory or die "$directory: $!";
	foreach my $size (7900, 100)
	{
		my $sent = 0;

		$sent++ while $sent < 1000 && try_sql($talker, "SELECT pg_notify('noise', repeat('x', $size))") eq '';
	}
	$faults->round;
	$faults->work($long ? 10 : 1);
	ok($node->log_has(qr/could not announce new events/, $offset), 'the queue of NOTIFY is full: it was');
	chmod 0700, $directory or die "$directory: $!";
	$listener->rollback;
	$_->disconnect foreach $listener, $talker;
	ok($node->poll_query_until('postgres', 'SELECT "position" >= es_settled() FROM es.announced'),
		'the queue of NOTIFY is full: what could not be announced is announced later') });

# The log runs full, and is given room again.
scenario('the sequence at its end', sub {
	my $session = EsClient->connect($node, 'postgres');
	my $set_last = sub {
		$node->safe_psql('postgres', qq{SET es.allow_destructive = on;
			DO \$\$ BEGIN EXECUTE 'ALTER SEQUENCE es.event_position MAXVALUE ' || $_[0]; END \$\$}) };
	my $state = '';

	$set_last->('(SELECT last_value + 200 FROM es.event_position)');
	$faults->round;
	foreach (1 .. 2000)
	{
		$state = try_sql($session, 'BEGIN',
			q{SELECT es_append_batch('rest-1', jsonb_agg('{"type": "E"}'::jsonb)) FROM generate_series(1, 10)});
		$session->do('ROLLBACK');
		last if $state eq '2200H';
	}
	is($state, '2200H', 'the sequence at its end: there are no positions left');
	$faults->work(0.5);
	$set_last->('9223372036854775807');
	$faults->work(0.5);
	is(try_sql($session, q{SELECT es_append('rest-1', 'E')}), '', 'the sequence at its end: with room it goes on');
	$session->disconnect });

# The same to the very last, in a database of its own: the last appends fail, and
# the log stays readable.
if (!$only || 'a sequence near its end' =~ /$only/)
{
	$node->safe_psql('postgres', 'CREATE DATABASE last_positions');
	$node->safe_psql('last_positions', q{
		CREATE EXTENSION es;
		SET es.allow_destructive = on;
		ALTER SEQUENCE es.event_position MAXVALUE 256});
	my $session = EsClient->connect($node, 'last_positions');
	my $appended = 0;
	foreach (1 .. 300)
	{
		$appended++ if try_sql($session, q{SELECT es_append('a-1', 'E')}) eq '';
	}
	is($session->state || try_sql($session, q{SELECT es_append('a-1', 'E')}), '2200H',
		'a sequence near its end: appends fail when it is exhausted');
	is($node->safe_psql('last_positions', 'SELECT count(*), max(version) FROM es_read(0, NULL)'),
		"$appended|$appended", '... and what was appended before can be read');
	is($appended, 256, '... which is all there was room for');
	$session->disconnect;
}

# ----------------------------------------------------------------------
# What takes longer
# ----------------------------------------------------------------------

sub wanted
{
	my ($name) = @_;

	return $long && (!$only || $name =~ /$only/);
}

# Leave a server with another clock, by libfaketime.
my ($faketime) = glob('/usr/lib/*/faketime/libfaketime.so.1');
my @left_out;
push @left_out, 'the clock (there is no libfaketime)' if $long && !$faketime;
push @left_out, 'a full disk (only root can mount a small one)' if $long && !$ENV{ES_SMALL_DISK};
if (wanted('the clock is set back by an hour') && $faketime)
{
	my $file = "$dir/clock";
	my $set = sub { append_to_file("$file.new", "$_[0]\n"); rename("$file.new", $file) or die; };

	$set->('+0');
	$node->stop;
	{
		local %ENV = (%ENV, LD_PRELOAD => $faketime, FAKETIME_TIMESTAMP_FILE => $file,
			FAKETIME_NO_CACHE => 1, DONT_FAKE_MONOTONIC => 1);
		$node->start;
	}
	scenario('the clock is set back by an hour', sub {
		$faults->work(1);
		$faults->round;
		$set->('-3600');
		my $position = $node->safe_psql('postgres', q{SELECT "position" FROM es_append('acc-1', 'E')});
		is($node->safe_psql('postgres', qq{SELECT recorded_at < (SELECT max(recorded_at) FROM es.event) - interval '50 minutes'
			FROM es.event WHERE "position" = $position}), 't', 'the clock was set back');
		ok($node->poll_query_until('postgres', qq{SELECT es_wait('ledger', $position, '10 s')}),
			'... and the projections go on');
		# A worker that ends is started anew, too.
		$node->safe_psql('postgres', "SELECT pg_terminate_backend($_)") foreach worker('projector'), worker('scheduler');
		$faults->work(2) });
	$node->restart;
}

# A full disk, if there is a small one (test/run mounts it where it may).
if ((my $small = $ENV{ES_SMALL_DISK}) && wanted('a full disk'))
{
	my $fill = sub { system('dd', 'if=/dev/zero', "of=$small/filler", 'bs=64k', 'status=none'); };

	mkdir("$small/data") or die "$small: $!";
	$node->safe_psql('postgres', "CREATE TABLESPACE small LOCATION '$small/data'");
	$node->safe_psql('postgres', "ALTER TABLE $_ SET TABLESPACE small") foreach 'es.event', 'ledger';
	scenario('a full disk for the data', sub {
		$faults->work(0.5);
		$faults->round;
		$fill->();
		$faults->work(5);
		ok($node->log_has(qr/No space left on device/), 'the disk was full');
		unlink "$small/filler";
		$faults->work(2) });
	$node->safe_psql('postgres', "ALTER TABLE $_ SET TABLESPACE pg_default") foreach 'es.event', 'ledger';
	$node->safe_psql('postgres', 'DROP TABLESPACE small');

	# WAL: the server goes down, and comes up when there is space again.
	$node->stop;
	system_or_bail('mv', $node->data_dir . '/pg_wal', "$small/wal");
	symlink("$small/wal", $node->data_dir . '/pg_wal') or die;
	$node->append_conf('postgresql.conf', 'archive_mode = off');
	$node->start;
	scenario('a full disk for WAL', sub {
		$faults->work(0.5);
		$faults->round;
		$fill->();
		my $offset = $node->log_end;
		foreach (1 .. 200)
		{
			# A switch makes it need the next segment.
			$node->psql('postgres', 'SELECT pg_switch_wal()');
			last if $node->log_has(qr/PANIC/, $offset);
			usleep(50_000);
		}
		ok($node->log_has(qr/PANIC.*No space left on device/, $offset), 'the disk was full');
		unlink "$small/filler";
		foreach (1 .. 100)
		{
			last if $faults->wait_back(2);
			PostgreSQL::Test::Utils::system_log('pg_ctl', '-w', '-t', 20, '-D', $node->data_dir,
				'-l', $node->logfile, 'start');
		}
		$node->_update_pid(1) });
	$node->stop;
	unlink $node->data_dir . '/pg_wal';
	system_or_bail('mv', "$small/wal", $node->data_dir . '/pg_wal');
	$node->start;
}

# Point-in-time recovery to the middle: the past is whole, and another epoch.
if (wanted('recovery to a point in time'))
{
	$node->append_conf('postgresql.conf', 'archive_mode = on');
	$node->restart;
	$node->backup('for_pitr');
	$faults->start('recovery to a point in time');
	$faults->work(1);
	$faults->round;
	my $epoch = $node->safe_psql('postgres', q{SELECT es_epoch() FROM pg_create_restore_point('middle')});
	$faults->work(1);
	$node->safe_psql('postgres', 'SELECT pg_switch_wal()');
	$faults->halt;
	$node->stop;
	my $past = EsNode->new('past');
	$past->init_from_backup($node, 'for_pitr', has_restoring => 1, standby => 0);
	$past->append_conf('postgresql.conf',
		"recovery_target_name = 'middle'\nrecovery_target_action = promote\n");
	$past->start;
	$past->poll_query_until('postgres', 'SELECT NOT pg_is_in_recovery()') or die;
	$faults->{node} = $past;
	my $verdict = $faults->finish(may_lose => 1);
	is_deeply($verdict->{violations}, [],
		'recovery to a point in time: nothing else is lost or repeated, and all invariants hold');
	isnt($past->safe_psql('postgres', 'SELECT es_epoch()'), $epoch, '... and the epoch is another');
	$past->stop;
	$node->start;
	$faults->{node} = $node;
}

# The standby takes over; what was acknowledged is there if it is synchronous.
foreach my $mode ('synchronous', 'asynchronous')
{
	my $name = "failover to a standby, $mode";
	my $standby = EsNode->new("standby_$mode");

	next if !wanted($name);
	$node->backup("for_$mode");
	$standby->init_from_backup($node, "for_$mode", has_streaming => 1);
	$standby->append_conf('postgresql.conf', "cluster_name = 'standby_$mode'\narchive_mode = off\n");
	$standby->start;
	if ($mode eq 'synchronous')
	{
		$node->append_conf('postgresql.conf', "synchronous_standby_names = 'standby_$mode'\n");
		$node->reload;
		$node->poll_query_until('postgres', q{SELECT count(*) > 0 FROM pg_stat_replication WHERE sync_state = 'sync'})
		  or die;
	}
	my $epoch = $node->safe_psql('postgres', 'SELECT es_epoch()');
	$faults->start($name);
	$faults->work(2);
	$faults->round;
	$node->kill9;
	$faults->halt;
	$standby->promote;
	$faults->{node} = $node = $standby;
	my $verdict = $faults->finish(may_lose => $mode eq 'asynchronous');
	is_deeply($verdict->{violations}, [], "$name: nothing else is lost or repeated, and all invariants hold");
	isnt($node->safe_psql('postgres', 'SELECT es_epoch()'), $epoch, "$name: the epoch is another");
	$node->append_conf('postgresql.conf', "synchronous_standby_names = ''\n");
	$node->reload;
}

my $handbook = slurp_file('doc/operations.md');
is(join(', ', grep { $handbook !~ /^\Q$_\E  /m } map { $_->{name} } @{ $faults->{verdicts} }), '',
	'doc/operations.md has a row for each fault');
diag("\n" . $faults->matrix . sprintf("(seed %d, %.0f s)", $seed, time - $began));
diag('left out: ' . join(', ', @left_out)) if @left_out;
$node->stop;
done_testing();
