# 004_crash.pl
#	  Exactly once, whatever is killed: the server, a projector or a backend in
#	  the middle of an append.

use strict;
use warnings;

use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

my $clients = 3;

# Nothing but commits (and what es does itself) brings WAL to disk.
my $node = EsNode->create('crash', conf => q{
	log_statement = none
	restart_after_crash = on
	wal_writer_delay = 10s
	es.batch_size = 50});

$node->safe_psql('postgres', q{
	SELECT es_create_command('NOTE', 'note', 'NOTED');

	CREATE TABLE mirror (position bigint PRIMARY KEY, version bigint, stream text, payload jsonb);
	SELECT es_create_projection('mirror', $$
		INSERT INTO mirror SELECT position, version, stream, payload FROM es_batch $$);

	CREATE TABLE total (stream text PRIMARY KEY, events bigint, positions numeric);
	SELECT es_create_projection('total', $$
		INSERT INTO total AS t SELECT stream, count(*), sum(position) FROM es_batch GROUP BY 1
		ON CONFLICT (stream) DO UPDATE SET events = t.events + excluded.events,
			positions = t.positions + excluded.positions $$);

	CREATE TABLE acked (command_id uuid, position bigint)});

#
# The clients.  Each submits a list of commands, each with an id, one by one;
# what psql prints for one tells that the server has acknowledged it.
#
my $round = 0;

# The command number n of a client, in SQL.
sub command
{
	my ($client, $n) = @_;
	my $id = "md5('$round $client $n')::uuid";

	return "SELECT $id, position, es_settled()"
	  . " FROM es_submit('NOTE', '" . ($n % 7) . "', '{\"n\": $n}', command_id => $id);\n";
}

# Start psql on a script.  It writes into a file: a pipe could fill up.
sub start_psql
{
	my ($name, $script) = @_;
	my $file = $node->basedir . "/$name-$round";

	append_to_file("$file.sql", $script);
	return {
		process => IPC::Run::start(
			[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'),
				'-f', "$file.sql" ],
			'>', "$file.out", '2>', "$file.err"),
		file => $file };
}

# What a client has printed, as a list of rows.
sub rows_of
{
	my ($run) = @_;

	# The last line may be cut off.
	return map { [ split /\|/ ] } slurp_file("$run->{file}.out") =~ /^(.*)\n/mg;
}

# Put load on the server, kill something and see what is left.
sub round
{
	my ($what, $kill) = @_;
	my @runs;

	$round++;
	for my $client (1 .. $clients)
	{
		push @runs, start_psql("client$client", join '', map { command($client, $_) } 1 .. 6000);
	}
	# Who does not wait for the disk may lose events, but not their places.
	my $careless = start_psql('careless', "SET synchronous_commit = off;\n"
		  . "SELECT position, es_settled() FROM es_append('careless-' || txid_current() % 5, 'DONE');\n" x 6000);

	usleep(200_000 + rand(400_000));
	$kill->();
	$_->{process}->finish for (@runs, $careless);
	come_back();

	my $highest = 0;
	my @acked;
	for my $row (map { rows_of($_) } @runs)
	{
		push @acked, $row;
		$highest = $row->[1] if $row->[1] > $highest;
		$highest = $row->[2] if $row->[2] > $highest;
	}
	for my $row (rows_of($careless))
	{
		$highest = $row->[0] if $row->[0] > $highest;
		$highest = $row->[1] if $row->[1] > $highest;
	}
	cmp_ok(scalar(@acked), '>', 0, "$what: there was load");
	check($what, $highest, \@acked);

	# Whoever did not hear back submits once more; so does who did.
	my @counts = map { scalar(() = rows_of($_)) + 3 } @runs;
	for my $client (1 .. $clients)
	{
		$node->safe_psql('postgres',
			join '', map { command($client, $_) } 1 .. $counts[ $client - 1 ]);
	}
	my $sum = 0;
	$sum += $_ for @counts;
	is( $node->safe_psql('postgres', qq{
			SELECT count(*), count(DISTINCT command_id) FROM es.command_log
			  JOIN es.event USING (position)
			 WHERE command_id = ANY (ARRAY(
				SELECT md5(concat_ws(' ', $round, c, n))::uuid
				  FROM generate_series(1, $clients) c, generate_series(1, 6000) n))}),
		"$sum|$sum", "$what: a command that is submitted again happens once");
	return;
}

# Wait until the server is there again.
sub come_back
{
	$node->start if !defined $node->{_pid};
	$node->poll_query_until('postgres', 'SELECT true')
	  or die 'the server does not come back';
	return;
}

sub check
{
	my ($what, $highest, $acked) = @_;

	cmp_ok($node->safe_psql('postgres', 'SELECT es_settled()'), '>=', $highest,
		"$what: the settled position does not fall");
	cmp_ok(
		$node->safe_psql('postgres', q{SELECT position FROM es_append('after-1', 'DONE')}),
		'>', $highest, "$what: no position that anybody saw is handed out again");

	$node->safe_psql('postgres', 'TRUNCATE acked; INSERT INTO acked VALUES '
		  . join(',', map { "('$_->[0]', $_->[1])" } @$acked));
	is($node->safe_psql('postgres', q{
			SELECT count(*) FROM acked a
			  LEFT JOIN es.command_log c USING (command_id, position)
			  LEFT JOIN es.event e USING (position)
			 WHERE c.position IS NULL OR e.position IS NULL}),
		0, "$what: every acknowledged command is there with its event");
	is($node->safe_psql('postgres', q{
			SELECT count(*) FROM (
				SELECT version, row_number() OVER (PARTITION BY stream ORDER BY position) AS n
				  FROM es.event) e
			 WHERE version <> n}),
		0, "$what: the versions of each stream are 1 to n");

	ok($node->wait_caught_up('postgres', $_), "$what: projection $_ catches up")
	  for ('mirror', 'total');
	is( $node->safe_psql('postgres', 'SELECT count(*), sum(position) FROM mirror'),
		$node->safe_psql('postgres', 'SELECT count(*), sum(position) FROM es.event'),
		"$what: count and sum of the read model are those of the log");
	is($node->safe_psql('postgres', q{
			SELECT count(*) FROM mirror m
			  FULL JOIN es.event e USING (position, version, stream, payload)
			 WHERE m.position IS NULL OR e.position IS NULL}),
		0, "$what: the content of the read model is that of the log");
	is($node->safe_psql('postgres', q{
			SELECT count(*) FROM total t
			  FULL JOIN (SELECT stream, count(*) AS events, sum(position) AS positions
							FROM es.event GROUP BY 1) e
				USING (stream, events, positions)
			 WHERE t.stream IS NULL OR e.stream IS NULL}),
		0, "$what: what was added up is as if nothing had happened");
	is($node->safe_psql('postgres', q{
			SELECT DISTINCT events_applied - (SELECT count(*) FROM es.event)
			  FROM es_projections}),
		0, "$what: the projections have counted each event once");
	return;
}

#
# The killing
#

sub kill_server
{
	$node->crash;
	return;
}

# A worker that is killed takes all sessions with it, and the server recovers.
sub kill_projector
{
	kill 'KILL', $node->worker_pid('projector', 'postgres');
	return;
}

sub kill_appender
{
	my $pid;

	# es_stat_append has those that have just taken a position.
	until ($pid = $node->safe_psql('postgres', 'SELECT pid FROM es_stat_append LIMIT 1'))
	{
		usleep(1000);
	}
	kill 'KILL', $pid;
	return;
}

for my $time ('first', 'second', 'third')
{
	round("$time kill of the server", \&kill_server);
	round("$time kill of a projector", \&kill_projector);
	round("$time kill of an appender", \&kill_appender);
}

#
# Positions that nobody committed
#

# The sequence writes WAL for many values at a time.  Go to where the next one
# has to, and take that with an event that never comes to be.
$node->safe_psql('postgres', q{
	SELECT es_append('block-1', 'DONE');
	SELECT es_append_batch('block-1', (SELECT jsonb_agg('{"type": "DONE"}'::jsonb)
		FROM generate_series(es_settled() + 1,
			(SELECT last_value + log_cnt * 64 FROM es.event_position))));
	SELECT pg_switch_wal()});
my $seen = $node->safe_psql('postgres', q{
	BEGIN;
	SELECT es_append('never-1', 'NEVER') \g /dev/null
	ROLLBACK;
	SELECT es_settled()});
$node->crash;
come_back();
cmp_ok($node->safe_psql('postgres', 'SELECT es_settled()'), '>=', $seen,
	'a position that was rolled back just before a crash stays settled');
cmp_ok($node->safe_psql('postgres', q{SELECT position FROM es_append('after-1', 'DONE')}),
	'>', $seen, 'a position that was rolled back just before a crash does not come again');

$node->stop;

done_testing();
