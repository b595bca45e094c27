# 001_workers.pl
#	  The worker processes: what starts them, what they survive, and what they
#	  keep out of the way of.

use strict;
use warnings;

use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# A projection that counts what it is given, and says as whom.
my $schema = q{
	CREATE TABLE counted (position bigint PRIMARY KEY, by name, session name);
	CREATE TABLE pace (seconds float NOT NULL);
	INSERT INTO pace VALUES (0);
	SELECT es_create_projection('count', $$
		INSERT INTO counted SELECT position, current_user, session_user FROM es_batch;
		SELECT pg_sleep(seconds) FROM pace $$);
};

my $node = EsNode->create('workers', conf => 'max_worker_processes = 24');

# Append an event and see it applied.
sub serves
{
	my ($database) = @_;
	my $seen = $node->safe_psql($database, qq{
		SELECT position FROM es_append('thing-1', 'THING_DONE') \\gset
		SELECT es_wait('count', :position, '$EsNode::patience s') AS waited \\gset
		SELECT count(*) FROM counted WHERE position = :position AND :'waited'});

	return $seen eq '1';
}

# Whether the read model holds every event of the log exactly once.
sub is_exact
{
	my ($database, $name) = @_;

	$node->wait_caught_up($database, 'count');
	is( $node->safe_psql($database, q{
			SELECT count(*), sum(position) FROM counted}),
		$node->safe_psql($database, q{
			SELECT count(*), sum(position) FROM es.event}),
		$name);
	return;
}

sub worker_count
{
	my ($database) = @_;

	return $node->safe_psql('postgres', qq{
		SELECT count(*) FROM pg_stat_activity
		 WHERE datname = '$database' AND backend_type LIKE 'es %'});
}

# Let applying stop in the middle of a batch.
sub get_stuck
{
	my ($database) = @_;

	$node->safe_psql($database, q{
		UPDATE pace SET seconds = 1000;
		SELECT es_append('thing-1', 'THING_DONE')});
	$node->poll_query_until('postgres', qq{
		SELECT count(*) = 1 FROM pg_stat_activity
		 WHERE datname = '$database' AND backend_type = 'es projector'
		   AND wait_event = 'PgSleep'})
	  or die 'the projection does not sleep';
	return;
}

# Let it go on, by ending the batch with a function of PostgreSQL's.
sub get_loose
{
	my ($database, $function) = @_;

	$node->safe_psql($database, 'UPDATE pace SET seconds = 0');
	$node->safe_psql($database, qq{
		SELECT $function(pid) FROM pg_stat_activity
		 WHERE datname = '$database' AND backend_type = 'es projector'});
	return;
}

sub make_database
{
	my ($database) = @_;

	$node->safe_psql('postgres', "CREATE DATABASE $database");
	$node->safe_psql($database, 'CREATE EXTENSION es');
	$node->safe_psql($database, $schema);
	ok(serves($database), "a projection in database $database is served");
	return;
}

#
# Coming up
#

ok(kill(0, $node->worker_pid('launcher')), 'the launcher starts with the server');
$node->safe_psql('postgres', $schema);
ok(serves('postgres'), 'the first projection brings up its workers');
ok(kill(0, $node->worker_pid('scheduler', 'postgres')),
	'a database with a log has a scheduler');
is(scalar(my @projectors = $node->worker_pid('projector', 'postgres')),
	1, 'an owner of projections has one projector');

$node->safe_psql('postgres', q{
	CREATE ROLE app LOGIN;
	SELECT es_grant('app', 'projector');
	CREATE TABLE by_app (position bigint, by name, session name, superuser text);
	ALTER TABLE by_app OWNER TO app;
	SET ROLE app;
	SELECT es_create_projection('of_app', $$
		INSERT INTO by_app SELECT position, current_user, session_user,
			current_setting('is_superuser') FROM es_batch $$)});
$node->wait_caught_up('postgres', 'of_app');
is($node->safe_psql('postgres',
		'SELECT DISTINCT by, session, superuser FROM by_app'),
	'app|app|off', 'a projection runs as its owner, with no more rights');
isnt($node->worker_pid('projector', 'postgres', 'app'), $projectors[0],
	'each owner has a projector of its own');
$node->safe_psql('postgres', q{SELECT es_drop_projection('of_app')});
$node->poll_query_until('postgres',
	q{SELECT count(*) = 0 FROM es_stat_workers WHERE role = 'app'});
pass('the projector of a role without projections goes away');

#
# Signals
#

for my $kind ('projector', 'scheduler', 'launcher')
{
	my $pid = $node->worker_pid($kind, 'postgres');

	$node->safe_psql('postgres', "SELECT pg_cancel_backend($pid)");
	ok(serves('postgres'), "the service survives pg_cancel_backend() on the $kind");
	is($node->worker_pid($kind, 'postgres'), $pid,
		"pg_cancel_backend() on an idle $kind changes nothing");

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	$node->wait_gone($pid);
	ok(serves('postgres'), "the service survives pg_terminate_backend() on the $kind");
	isnt($node->worker_pid($kind, 'postgres'), $pid, "another $kind takes its place");
}

# The order matters: the second one was not started by the first one's heir.
# They come back long before they would look round by themselves (60 s).
for my $kind ('launcher', 'scheduler', 'projector')
{
	my $pid = $node->worker_pid($kind, 'postgres');
	local $EsNode::patience = 45;

	$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
	$node->wait_gone($pid);
	isnt($node->worker_pid($kind, 'postgres'), $pid,
		"a $kind comes back without anything to do for it");
}
is_exact('postgres', 'what was terminated applied nothing twice and lost nothing');

get_stuck('postgres');
get_loose('postgres', 'pg_cancel_backend');
$node->poll_query_until('postgres',
	q{SELECT status = 'caught up' FROM es_projections});
is_exact('postgres', 'a batch that was cancelled in its middle is applied once');

get_stuck('postgres');
get_loose('postgres', 'pg_terminate_backend');
is_exact('postgres', 'a batch whose projector was terminated is applied once');

my @pids = map { $node->worker_pid($_, 'postgres') } qw(launcher scheduler projector);
$node->append_conf('postgresql.conf', 'es.batch_size = 1');
$node->reload;
my $batches;
do
{
	usleep(20_000) if defined $batches;
	$batches = $node->safe_psql('postgres', q{
		SELECT batches FROM es_projections \gset
		SELECT last_position AS position FROM es_append_batch('thing-2',
			'[{"type": "A"}, {"type": "B"}, {"type": "C"}]') \gset
		SELECT es_wait('count', :position, '60 s') \gset
		SELECT batches - :batches FROM es_projections});
} until $batches == 3;
pass('SIGHUP makes a projector go by the new es.batch_size');
is_deeply([ map { $node->worker_pid($_, 'postgres') } qw(launcher scheduler projector) ],
	\@pids, 'SIGHUP ends no worker');
$node->adjust_conf('postgresql.conf', 'es.batch_size', '10000');
$node->reload;

#
# Commands on whole databases
#

make_database('one');
make_database('two');
is(worker_count('one') + worker_count('two'), 4,
	'each database has a scheduler and a projector');

# Settings made for sessions; ours override them.
my %settings = (
	statement_timeout => '1ms',
	idle_session_timeout => '1ms',
	default_transaction_read_only => 'on',
	default_transaction_isolation => 'serializable',
	search_path => 'pg_temp');
$node->safe_psql('postgres', "ALTER DATABASE one SET $_ = '$settings{$_}'")
  for (sort keys %settings);
{
	local $ENV{PGOPTIONS} = '-c statement_timeout=0 -c idle_session_timeout=0'
	  . ' -c default_transaction_read_only=off -c search_path=public'
	  . ' -c default_transaction_isolation=read\\ committed';

	for my $kind ('projector', 'scheduler')
	{
		my $pid = $node->worker_pid($kind, 'one');

		$node->safe_psql('one', "SELECT pg_terminate_backend($pid)");
		$node->wait_gone($pid);
		$node->worker_pid($kind, 'one');
	}
	ok(serves('one'), 'settings of the database for its sessions stop no worker');
}
$node->safe_psql('postgres', 'ALTER DATABASE one RESET ALL');

get_stuck('two');
$node->psql('postgres', "SET statement_timeout = '100 ms'; DROP DATABASE two",
	stderr => \my $stderr);
like($stderr, qr/canceling statement due to statement timeout/,
	'DROP DATABASE can be cancelled while it waits for the workers');
get_loose('two', 'pg_cancel_backend');
ok($node->poll_query_until('two', q{
		SELECT (SELECT count(*) FROM counted) = (SELECT count(*) FROM es.event)}),
	'a database that was not dropped after all gets its workers back');

get_stuck('two');
$node->safe_psql('postgres', 'DROP DATABASE two');
is(worker_count('two'), 0, 'DROP DATABASE ends the workers, even in a batch');

# A worker that is just starting is in nobody's way either.
for my $i (1 .. 3)
{
	$node->safe_psql('postgres', 'CREATE DATABASE brief');
	$node->safe_psql('brief', "CREATE EXTENSION es; $schema");
	$node->safe_psql('postgres', 'DROP DATABASE brief');
}
pass('DROP DATABASE works while workers come up');

$node->safe_psql('postgres', 'ALTER DATABASE one RENAME TO uno');
ok($node->worker_pid('projector', 'uno'),
	'ALTER DATABASE RENAME works, and the workers come back by themselves');
ok(serves('uno'), 'the renamed database is served');

get_stuck('uno');
$node->safe_psql('postgres', 'CREATE DATABASE due TEMPLATE uno');
pass('CREATE DATABASE TEMPLATE works in the middle of a batch');
get_loose('uno', 'pg_terminate_backend');
$node->safe_psql('due', 'UPDATE pace SET seconds = 0');
is_exact('uno', 'the original goes on after it was cloned');

#
# A clone
#

is($node->safe_psql('due', 'SELECT status FROM es_projections'), 'suspended',
	'the projections of a clone are suspended');
my $frozen = $node->safe_psql('due', 'SELECT count(*) FROM counted');
my $position = $node->safe_psql('due',
	q{SELECT position FROM es_append('thing-1', 'THING_DONE')});
ok($node->worker_pid('scheduler', 'due'), 'a clone has a scheduler once it is used');
$node->poll_query_until('due',
	"SELECT position >= $position FROM es.settled");
is($node->safe_psql('due', 'SELECT count(*) FROM counted'), $frozen,
	'a clone applies nothing until es_activate()');
is($node->safe_psql('due',
		q{SELECT count(*) FROM es_stat_workers WHERE kind = 'projector'}),
	0, 'a clone has no projector until es_activate()');
$node->safe_psql('due', 'SELECT es_activate()');
ok($node->worker_pid('projector', 'due'), 'es_activate() brings up the projectors');
is_exact('due', 'after es_activate() a clone applies what it holds, once');
isnt($node->safe_psql('due', 'SELECT max(position) FROM es.event'),
	$node->safe_psql('uno', 'SELECT max(position) FROM es.event'),
	'the clone has a log of its own');

# Short sessions that append all the time.
my $script = $node->basedir . '/append.sql';
append_to_file($script, q{SELECT es_append('thing-' || (random() * 10)::int, 'THING_DONE');});
my $load = IPC::Run::start(
	[ 'pgbench', '-n', '-C', '-c', 3, '-j', 3, '-T', 4, '-f', $script, $node->connstr('uno') ],
	'>', \my $out, '2>', \my $err);
$node->safe_psql('postgres', "CREATE DATABASE clone$_ TEMPLATE uno") for (1 .. 3);
pass('CREATE DATABASE TEMPLATE works under load');
{
	# Far less than what a worker that failed that often would have to wait.
	local $EsNode::patience = 5;
	ok($node->worker_pid('projector', 'uno'),
		'workers that had to stop for a while are back at once');
}
IPC::Run::finish($load) or diag($err);
is_exact('uno', 'the original of clones made under load has lost nothing');
is($node->safe_psql('clone3', q{
		SELECT count(*) FROM counted c FULL JOIN
			(SELECT position FROM es.event
			  WHERE position <= (SELECT position FROM es_projections)) e USING (position)
		 WHERE c.position IS NULL OR e.position IS NULL}),
	0, 'in a clone made under load read model and checkpoint agree');
$node->safe_psql('clone3', 'SELECT es_activate()');
is_exact('clone3', 'a clone made under load goes on from its checkpoint');

#
# A template that has the extension
#

$node->safe_psql('template1', 'CREATE EXTENSION es');
$node->safe_psql('template1', $schema);
ok($node->worker_pid('projector', 'template1'), 'template1 can have a log');
$node->safe_psql('postgres', 'CREATE DATABASE heir');
pass('CREATE DATABASE works while the default template has workers');
$node->safe_psql('template1', 'SET es.allow_destructive = on; DROP EXTENSION es CASCADE; DROP TABLE counted, pace');

#
# The extension comes and goes
#

my $log = $node->log_end;
my @before = $node->worker_pid('projector', 'uno');
$node->safe_psql('uno', q{
	SET es.allow_destructive = on;
	DROP EXTENSION es CASCADE;
	DROP TABLE counted, pace});
$node->safe_psql('uno', 'CREATE EXTENSION es');
$node->safe_psql('uno', $schema);
ok(serves('uno'), 'a log that was created anew is served');
is($node->safe_psql('uno', 'SELECT count(*) FROM es.event'), 1,
	'DROP EXTENSION and CREATE EXTENSION leave an empty log');
ok($node->poll_query_until('uno',
	'SELECT position = es_settled() FROM es.settled'),
	'the settled position of the new log is written down');

$node->safe_psql('uno', q{
	SET es.allow_destructive = on;
	BEGIN;
	DROP EXTENSION es CASCADE;
	DROP TABLE counted, pace;
	CREATE EXTENSION es;
	COMMIT});
$node->safe_psql('uno', $schema);
ok(serves('uno'), 'a log that was replaced in one transaction is served');
ok($node->poll_query_until('uno',
	'SELECT position = es_settled() FROM es.settled'),
	'the settled position of the replaced log is written down');

$node->safe_psql('uno', q{
	SET es.allow_destructive = on;
	DROP EXTENSION es CASCADE});
$node->safe_psql('uno', 'SELECT 1');
$node->safe_psql('postgres', 'ALTER DATABASE uno RENAME TO one');
ok(!$node->log_has(qr/(ERROR|FATAL|PANIC|TRAP):/, $log),
	'the workers of a dropped extension leave no error behind');

$node->stop;

#
# No room
#

# One for logical replication, the launcher, and the workers of one database.
my $full = EsNode->create('full', extension => 0, conf => q{
	max_worker_processes = 4
	es.max_databases = 2});

$full->safe_psql('postgres', $_)
  for ('CREATE DATABASE first', 'CREATE DATABASE plain', 'CREATE DATABASE second');
$full->safe_psql($_, "CREATE EXTENSION es; $schema") for ('first', 'second');
ok($full->wait_caught_up('first', 'count'), 'the workers of one database fit');

my $applied = q{
	SELECT position FROM es_append('a-1', 'A') \gset
	SELECT es_wait('count', :position, '2 s')};
is($full->safe_psql('second', $applied), 'f',
	'where no worker is free, nothing is applied');
is($full->safe_psql('first', $applied), 't',
	'those that run are not concerned');
is(no_room_warnings(0), 1, 'it is said once, with the setting to raise');

$log = $full->log_end;
$full->restart;
$full->worker_pid('projector', 'first');
$full->wait_for_log(qr/could not start an es/, $log);
is(no_room_warnings($log), 1, 'it is said once again after a restart');
is($full->safe_psql('second', q{SELECT count(*) FROM counted}), 0,
	'there is no more room than before');
$full->safe_psql('postgres', 'DROP DATABASE first');
ok($full->poll_query_until('second', 'SELECT count(*) = 1 FROM counted'),
	'a database is served as soon as there is room, without being used');

# How often the log says that there is no room, in the one way to say it.
sub no_room_warnings
{
	my ($offset) = @_;
	my @warnings = slurp_file($full->logfile, $offset) =~
	  /WARNING:  could not start an es \w+: no background worker is free\n.*HINT:  Raise max_worker_processes, which is 4/g;

	return scalar @warnings;
}

$full->stop;

done_testing();
