# EsFaults.pm
#	  Clients that work on a log while things go wrong, and write down each
#	  operation: what they asked for, and what they were told.
#
#	my $faults = EsFaults->new($node, $directory, $seed);
#	$faults->prepare;
#	$faults->start('a name', clients => 3);
#	$faults->arm('append.rows', 'kill');
#	$faults->wait_fired;
#	...
#	my $verdict = $faults->finish;		# see EsChecker
#
# Each operation is one line of JSON in the client's file when it is invoked and
# one when it has ended: ok, failed (it certainly had no effect) or unknown (the
# connection was lost).  EsChecker judges the files afterwards.  What a client
# does follows from the seed; what it is told depends on the others, too.

package EsFaults;

use strict;
use warnings;

use EsChecker;
use EsClient;
use EsTable;
use File::Path qw(make_path);
use JSON::PP;
use POSIX qw(_exit);
use Test::More;
use Time::HiRes qw(time usleep);

my $json = JSON::PP->new->canonical;

# In a client: the file that tells it to end, whatever it has to do.
my $halted;

# What a client does, and how often of a hundred times.
my @operations = (
	[ append => 34 ], [ batch => 12 ], [ transaction => 12 ], [ rollback => 10 ],
	[ stale => 8 ], [ submit => 14 ], [ wait => 6 ], [ hold => 2 ], [ subtransactions => 2 ]);

sub new
{
	my ($class, $node, $directory, $seed) = @_;

	make_path($directory);
	return bless {
		node => $node,
		database => 'postgres',
		directory => $directory,
		seed => $seed,
		scenario => 0 }, $class;
}

# The tables, projections and commands that the clients use.  All read models
# are without a key, so that an event that is applied twice shows.
sub prepare
{
	my ($self) = @_;

	$self->{node}->safe_psql($self->{database}, q{
		CREATE ROLE client LOGIN;
		CREATE ROLE owner LOGIN;
		SELECT es_grant('client', 'writer'), es_grant('client', 'reader'), es_grant('owner', 'projector');
		GRANT pg_read_all_stats TO client;
		CREATE TABLE ledger ("position" bigint, stream text, version bigint);
		CREATE TABLE tally (one int PRIMARY KEY, n bigint, positions numeric);
		CREATE TABLE sync_tally (stream text PRIMARY KEY, n bigint, positions numeric);
		CREATE TABLE by_stream (stream text PRIMARY KEY, version bigint);
		ALTER TABLE by_stream OWNER TO owner;
		CREATE TABLE fragile ("position" bigint);
		INSERT INTO tally VALUES (1, 0, 0);
		GRANT ALL ON ledger, tally, sync_tally, by_stream, fragile TO owner;
		GRANT SELECT ON ledger, tally, es.checkpoint TO client;
		GRANT USAGE ON SCHEMA es TO client;
		SELECT es_create_command('TOUCH', 'job', 'TOUCHED');

		-- One event at a time, which must be the next of its stream.
		CREATE FUNCTION next_of_stream(e es.event) RETURNS void LANGUAGE plpgsql AS $$
		DECLARE
			last bigint;
		BEGIN
			INSERT INTO by_stream AS s VALUES (e.stream, e.version)
				ON CONFLICT (stream) DO UPDATE SET version = excluded.version
				WHERE s.version = excluded.version - 1
				RETURNING version INTO last;
			IF last IS NULL THEN
				RAISE EXCEPTION 'version % of % is not the next', e.version, e.stream;
			END IF;
		END $$});
	$self->{node}->safe_psql($self->{database}, q{
		SET ROLE owner;
		SELECT es_create_projection('ledger', $$
			INSERT INTO ledger SELECT "position", stream, version FROM es_batch;
			UPDATE tally t SET n = t.n + b.n, positions = t.positions + b.p
			  FROM (SELECT count(*), sum("position") FROM es_batch) b (n, p)$$);
		SELECT es_create_projection('by_stream', $$
			SELECT next_of_stream(e) FROM es_batch e ORDER BY "position"$$, tables => '{by_stream}');
		SELECT es_create_projection('sync_tally', $$
			INSERT INTO sync_tally SELECT stream, count(*), sum("position") FROM es_batch GROUP BY stream
			ON CONFLICT (stream) DO UPDATE SET n = sync_tally.n + excluded.n,
				positions = sync_tally.positions + excluded.positions$$, mode => 'sync');
		SELECT es_create_projection('fragile', $$
			INSERT INTO fragile SELECT "position" + 0 / (type <> 'POISON')::int FROM es_batch$$)});
	return;
}

# ----------------------------------------------------------------------
# The scenario
# ----------------------------------------------------------------------

# Begin a scenario: clients, a reader and an observer start.
#
#	clients		how many (default: 3)
#	operations	what they do, if not the usual
sub start
{
	my ($self, $name, %params) = @_;

	$self->{scenario}++;
	$self->{name} = $name;
	$self->{operations} = $params{operations} // \@operations;
	$self->{rounds} = 0;
	$self->{fired} = [];
	$self->{from} = $self->{node}->safe_psql($self->{database}, 'SELECT es_settled()');
	$self->{logs} = "$self->{directory}/$self->{scenario}";
	make_path($self->{logs});
	$self->{stop} = "$self->{logs}/stop";
	$self->{pids} = [];
	foreach my $n (1 .. $params{clients} // 3)
	{
		$self->_fork("client-$n", sub { $self->_client($n, @_) });
	}
	$self->_fork('reader', sub { $self->_reader(@_) });
	return;
}

sub _fork
{
	my ($self, $name, $code) = @_;
	my $pid = fork // die "fork: $!";

	if ($pid == 0)
	{
		open(my $log, '>>', "$self->{logs}/$name.log") or _exit(1);
		$log->autoflush(1);
		eval { $code->($log); 1 } or print $log $json->encode({ died => "$@" }), "\n";
		close $log;
		_exit(0);
	}
	push @{ $self->{pids} }, $pid;
	return;
}

# Let a process die, or whatever, when it comes to a place (see src/fault.c).
sub arm
{
	my ($self, $place, $action, $skip) = @_;
	my $file = $self->{node}->data_dir . '/es_fault';

	unlink "$file.fired";
	open(my $handle, '>', "$file.new") or die "$file.new: $!";
	printf $handle "%s %s %d\n", $place, $action, $skip // 0;
	close $handle;
	rename("$file.new", $file) or die "$file: $!";
	$self->{rounds}++;
	return;
}

# Wait until that has happened; false, and the fault is disarmed, if nobody came
# by in time.
sub wait_fired
{
	my ($self) = @_;
	my $file = $self->{node}->data_dir . '/es_fault';
	my $deadline = time + 20;

	until (-e "$file.fired")
	{
		if (time > $deadline)
		{
			unlink $file;
			return 0;
		}
		usleep(5_000);
	}
	return 1;
}

# Wait until the server takes connections again and its workers work.
sub wait_back
{
	my ($self, $seconds) = @_;
	my $deadline = time + ($seconds // 60);

	while (time < $deadline)
	{
		my $session = EsClient->connect($self->{node}, $self->{database}, may_fail => 1);
		if ($session)
		{
			my $ok = eval {
				$session->selectrow_array(q{SELECT count(*) >= 2 FROM es_stat_workers
					WHERE kind IN ('scheduler', 'projector')});
			};
			$session->disconnect;
			return 1 if $ok;
		}
		usleep(20_000);
	}
	return 0;
}

# Count a round of what is not a fault point.
sub round
{
	my ($self) = @_;

	return ++$self->{rounds};
}

# Let the clients work for a while.
sub work
{
	my ($self, $seconds) = @_;

	usleep($seconds * 1e6);
	return;
}

# Stop the clients and the reader without judging: they cannot follow to another
# server.
sub halt
{
	my ($self) = @_;

	foreach my $file ($self->{stop}, "$self->{stop}.reader", "$self->{stop}.now")
	{
		open(my $stop, '>', $file) or die "$file: $!";
		close $stop;
	}
	waitpid($_, 0) foreach splice(@{ $self->{pids} });
	return;
}

# End the scenario and judge it.  The clients end first, then the projections
# catch up, then the reader.
sub finish
{
	my ($self, %params) = @_;

	open(my $stop, '>', $self->{stop}) or die;
	close $stop;
	waitpid($_, 0) foreach splice(@{ $self->{pids} }, 0, -1);
	my $caught_up = $self->_catch_up;
	open($stop, '>', "$self->{stop}.reader") or die;
	close $stop;
	waitpid($_, 0) foreach splice(@{ $self->{pids} });

	my $verdict = EsChecker->new($self->{logs}, $self->_final_state, %params)->judge;
	push @{ $verdict->{violations} }, 'the projections have not caught up' if !$caught_up;
	$verdict->{name} = $self->{name};
	$verdict->{rounds} = $self->{rounds};
	push @{ $self->{verdicts} }, $verdict;
	return $verdict;
}

# Wait until both asynchronous projections have applied all there is, and no
# command is still scheduled.  A projection that a transient error has stopped tries again by itself.
sub _catch_up
{
	my ($self) = @_;
	my $deadline = time + 90;
	my $complaint = time + 5;

	while (time < $deadline)
	{
		if (time > $complaint)
		{
			$complaint = $deadline;
			note($self->{node}->safe_psql($self->{database},
				q{SELECT now(); SELECT * FROM es_stat_workers;
				  SELECT name, status, position, last_error FROM es_projections}));
		}
		my $lag = eval {
			my $session = EsClient->connect($self->{node}, $self->{database});
			my ($n) = $session->selectrow_array(q{
				SELECT count(*) + (SELECT count(*) FROM es.schedule)
				  FROM es.checkpoint WHERE projection IN ('ledger', 'by_stream') AND rebuild = 0
				   AND "position" < (SELECT coalesce(max("position"), 0) FROM es.event)});
			$session->disconnect;
			$n;
		};
		return 1 if defined $lag && $lag == 0;
		usleep(20_000);
	}
	return 0;
}

# What the database holds in the end.
sub _final_state
{
	my ($self) = @_;
	my $session = EsClient->connect($self->{node}, $self->{database});
	my %state = (from => $self->{from});

	$state{events} = $session->selectall_arrayref(q{
		SELECT "position", stream, version, payload->>'op', payload->>'part'
		  FROM es.event ORDER BY "position"});
	$state{ledger} = $session->selectall_arrayref(
		'SELECT "position", stream, version FROM ledger ORDER BY 1, 3');
	($state{tally}) = $session->selectrow_array(q{SELECT n || '/' || positions FROM tally});
	$state{sync_tally} = $session->selectall_hashref('SELECT * FROM sync_tally', 'stream');
	$state{by_stream} = $session->selectall_hashref('SELECT * FROM by_stream', 'stream');
	($state{epoch}) = $session->selectrow_array('SELECT es_epoch()');
	$session->disconnect;
	return \%state;
}

# ----------------------------------------------------------------------
# The clients
# ----------------------------------------------------------------------

sub _client
{
	my ($self, $n, $log) = @_;
	my ($session, $op) = (undef, 0);

	$halted = "$self->{stop}.now";
	srand($self->{seed} * 1_000_003 + $self->{scenario} * 101 + $n);
	until (-e $self->{stop} || getppid == 1)
	{
		$session = EsClient->connect($self->{node}, $self->{database}, user => 'client', may_fail => 1)
		  if !$session || !$session->ping;
		if (!$session)
		{
			usleep(20_000);
			next;
		}
		my $kind = _pick($self->{operations});
		my $id = "$self->{scenario}-$n-" . ++$op;
		my $code = __PACKAGE__->can("_do_$kind");
		my ($parts, $what) = _plan($kind);
		_run($session, $log, { op => $id, kind => $kind, parts => $parts, %$what }, $code);
		usleep(int(rand(12_000)));
	}
	$session->disconnect if $session;
	return;
}

sub _pick
{
	my ($operations) = @_;
	my $r = rand(100);

	foreach my $operation (@$operations)
	{
		return $operation->[0] if ($r -= $operation->[1]) < 0;
	}
	return 'append';
}

sub _stream
{
	return sprintf('acc-%d', int(rand(10)));
}

# What an operation is going to append: a stream for each part.
sub _plan
{
	my ($kind) = @_;

	return ([ (_stream()) x (2 + int(rand(4))) ], {}) if $kind eq 'batch';
	return ([ sort(_stream(), _stream()) ], {}) if $kind eq 'transaction';
	return ([ sprintf('job-%d', int(rand(10))) ], { id => _uuid() }) if $kind eq 'submit';
	return ([ (_stream()) x 12 ], { keep => [ map { rand() < 0.7 ? 1 : 0 } 1 .. 75 ] })
	  if $kind eq 'subtransactions';
	return ([ _stream() ], {});
}

sub _uuid
{
	return sprintf('%04x%04x-%04x-4%03x-8%03x-%04x%04x%04x', map { int(rand($_)) }
		  65536, 65536, 65536, 4096, 4096, 65536, 65536, 65536);
}

sub _note
{
	my ($log, $op, $status, %more) = @_;

	print $log $json->encode({ at => time, status => $status, %$op, %more }), "\n";
	return;
}

# Invoke an operation and note how it ended.
sub _run
{
	my ($session, $log, $op, $code) = @_;

	_note($log, $op, 'invoked');
	my $result = eval { $code->($session, $op) };
	if ($result)
	{
		_note($log, $op, $result->{status} // 'ok', result => $result);
		return;
	}
	my ($error, $state) = ($@, $session->state);
	eval { $session->rollback if !$session->{AutoCommit} };
	my $alive = eval { $session->ping > 0 };
	_note($log, $op, $alive ? 'failed' : 'unknown',
		state => $state, error => substr($error, 0, 200));
	return;
}

sub _payload
{
	my ($op, $part) = @_;

	return $json->encode({ op => $op->{op}, part => $part });
}

sub _append
{
	my ($session, $op, $part, $expected) = @_;
	my @row = $session->selectrow_array(
		q{SELECT "position", version FROM es_append(?, 'E', ?, ?)}, undef,
		$op->{parts}[$part], _payload($op, $part), $expected);

	return \@row;
}

sub _do_append
{
	my ($session, $op) = @_;

	return { got => [ _append($session, $op, 0) ] };
}

sub _do_batch
{
	my ($session, $op) = @_;
	my $parts = $op->{parts};
	my $events = $json->encode(
		[ map { { type => 'E', payload => { op => $op->{op}, part => $_ } } } 0 .. $#$parts ]);
	my ($first, $last, $version) = $session->selectrow_array(
		'SELECT first_position, last_position, version FROM es_append_batch(?, ?)', undef, $parts->[0], $events);

	return { got => [ map { [ $first + $_, $version - $#$parts + $_ ] } 0 .. $#$parts ] };
}

sub _do_transaction
{
	my ($session, $op) = @_;

	$session->begin_work;
	my @got = map { _append($session, $op, $_) } 0 .. 1;
	$session->commit;
	return { got => \@got };
}

sub _do_rollback
{
	my ($session, $op) = @_;

	$session->begin_work;
	_append($session, $op, 0);
	$session->rollback;
	return { status => 'failed' };
}

# An expected version that the stream has left must be refused.
sub _do_stale
{
	my ($session, $op) = @_;
	my ($version) = $session->selectrow_array(
		'SELECT coalesce(max(version), 0) FROM es_stream(?)', undef, $op->{parts}[0]);

	return { status => 'failed' } if $version == 0;
	eval { _append($session, $op, 0, $version - 1) };
	die $@ if $@ && $session->state ne 'ES001';
	return { status => $@ ? 'failed' : 'ok', stale => 1 };
}

# A command with an id is tried again until it is known how it ended.
sub _do_submit
{
	my ($session, $op) = @_;
	my ($position, $version, $duplicate);

	foreach my $attempt (1 .. 200)
	{
		last if $halted && -e $halted;
		my ($id) = $op->{parts}[0] =~ /-(\d+)/;

		eval {
			$session = EsClient->connect(@{ $session->{private_es_where} }, user => 'client')
			  if !$session->ping;
			($position, $version, $duplicate) = $session->selectrow_array(
				q{SELECT "position", version, duplicate FROM es_submit('TOUCH', ?, ?, ?)},
				undef, $id, _payload($op, 0), $op->{id});
		};
		my $error = $@;
		return { got => [ [ $position, $version ] ], attempts => $attempt } if !$error;
		die $error if $session->ping && $session->state !~ /^(?:57|40|25|53|55|58|XX|08)/;
		usleep(50_000);
	}
	die 'the command was never answered';
}

# A command that a worker submits when it is due, which is soon.
sub _do_schedule
{
	my ($session, $op) = @_;
	my ($id) = $op->{parts}[0] =~ /-(\d+)/;

	$session->do(q{SELECT es_schedule('TOUCH', ?, ?, now() + interval '10 ms', ?)},
		undef, $id, _payload($op, 0), $op->{id});
	return { status => 'ok' };
}

# What es_wait() has waited for can be seen.
sub _do_wait
{
	my ($session, $op) = @_;
	my $got = _append($session, $op, 0);
	my ($seen, $visible) = (0, undef);

	eval {
		($seen) = $session->selectrow_array(q{SELECT es_wait('ledger', ?, '2 s')}, undef, $got->[0]);
		($visible) = $session->selectrow_array(
			'SELECT count(*) FROM ledger WHERE "position" = ?', undef, $got->[0])
		  if $seen;
	};
	return { got => [$got], waited => $seen ? 1 : 0, visible => $visible };
}

# An appender that takes its time holds the settled position back.
sub _do_hold
{
	my ($session, $op) = @_;

	$session->begin_work;
	my $got = _append($session, $op, 0);
	usleep(150_000);
	$session->commit;
	return { got => [$got] };
}

# More subtransactions than a backend advertises, some of which are undone.
sub _do_subtransactions
{
	my ($session, $op) = @_;
	my @parts;

	$session->begin_work;
	foreach my $i (0 .. $#{ $op->{keep} })
	{
		$session->do('SAVEPOINT s');
		my $keep = $op->{keep}[$i];
		if ($i % 7 == 0)
		{
			_append($session, $op, $i / 7 > 11 ? 11 : $i / 7);
			push @parts, $i / 7 if $keep;
		}
		$session->do($keep ? 'RELEASE s' : 'ROLLBACK TO s');
	}
	$session->commit;
	return { kept => \@parts };
}

# ----------------------------------------------------------------------
# The reader and observer
# ----------------------------------------------------------------------

# Reads the log from where the scenario began, as a consumer would: from its last
# position on, and from the beginning when the epoch changes.  Between, it looks
# whether checkpoint and read model agree in one snapshot.
sub _reader
{
	my ($self, $log) = @_;
	my ($session, $epoch, $after) = (undef, '', $self->{from});

	for (;;)
	{
		my $last_round = -e "$self->{stop}.reader" || getppid == 1;

		$session = EsClient->connect($self->{node}, $self->{database}, user => 'client', may_fail => 1)
		  if !$session || !$session->ping;
		if (!$session)
		{
			last if -e "$self->{stop}.now";
			usleep(20_000);
			next;
		}
		eval {
			my ($new, $settled) = $session->selectrow_array('SELECT es_epoch(), es_settled()');
			my $events = $session->selectall_arrayref(
				q{SELECT "position", payload->>'op', payload->>'part' FROM es_read(?, NULL)},
				undef, $new eq $epoch ? $after : $self->{from});
			my ($same) = $session->selectrow_array('SELECT es_epoch()');

			if ($same eq $new)
			{
				$epoch = $new;
				print $log $json->encode(
					{ epoch => $epoch, settled => $settled,
						events => [ map { [ $_->[0] + 0, $_->[1], $_->[2] ] } @$events ] }), "\n"
				  if @$events || !defined $after || $settled > $after;
				$after = $events->[-1][0] if @$events;
			}
			$self->_observe($session, $log);
			1;
		};
		last if $last_round && !$@ || getppid == 1 || -e "$self->{stop}.now";
		usleep(10_000);
	}
	$session->disconnect if $session;
	return;
}

sub _observe
{
	my ($self, $session, $log) = @_;
	my ($position, $n, $should) = $session->selectrow_array(q{
		SELECT c."position", (SELECT n FROM tally),
			   (SELECT count(*) FROM es.event e WHERE e."position" <= c."position")
		  FROM es.checkpoint c WHERE projection = 'ledger'});

	print $log $json->encode({ snapshot => "checkpoint $position, $n applied, $should events" }), "\n"
	  if $n != $should;
	return;
}

# The matrix of all scenarios so far, as a table.
sub matrix
{
	my ($self) = @_;

	return table(
		[ qw(fault rounds events acknowledged unknown lost repeated invariants) ],
		map { my $v = $_;
			[ @{$v}{qw(name rounds events acknowledged unknown lost repeated)},
				@{ $v->{violations} } ? 'VIOLATED' : 'held' ] } @{ $self->{verdicts} });
}

1;
