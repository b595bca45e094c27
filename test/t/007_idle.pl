# 007_idle.pl
#	  What the workers cost when there is nothing to do, what they leave behind
#	  after a lot of work, and what becomes of positions in a restart.

use strict;
use warnings;

use EsClient;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;

plan skip_all => 'no /proc here to look at processes with' unless -r '/proc/self/smaps_rollup';

my $batches = 100_000;

# Without autovacuum and streaming nobody else writes WAL or takes xids.
my $node = EsNode->create('idle', conf => q{
	log_statement = none
	autovacuum = off
	max_wal_size = 4GB});

$node->safe_psql('postgres', q{
	CREATE TABLE latest (stream text PRIMARY KEY, position bigint, events bigint);
	SELECT es_create_projection('latest', $$
		INSERT INTO latest AS l SELECT stream, max(position), count(*) FROM es_batch GROUP BY 1
		ON CONFLICT (stream) DO UPDATE SET position = excluded.position,
			events = l.events + excluded.events $$,
		batch_size => 1)});

my @kinds = qw(launcher scheduler projector);

# The number after a key in a file of /proc, of each worker.
sub of_workers
{
	my ($file, $key) = @_;

	return map {
		my ($number) = slurp_file('/proc/' . $node->worker_pid($_, 'postgres') . "/$file") =~
		  /^\Q$key\E:\s+(\d+)/m;
		$_ => $number
	} @kinds;
}

# Append a number of events to a few streams, and wait until they are applied.
sub append
{
	my ($count) = @_;

	$node->safe_psql('postgres', qq{
		SELECT count(es_append_batch('thing-' || s, list))
		  FROM generate_series(1, 10) s,
			(SELECT jsonb_agg('{"type": "THING_DONE"}'::jsonb) AS list
			   FROM generate_series(1, $count / 10)) l});
	$node->wait_caught_up('postgres', 'latest') or die 'the projection is behind';
	return;
}

#
# Much work
#

append($batches / 10);
my %before = of_workers('smaps_rollup', 'Anonymous');
append($batches);
my %after = of_workers('smaps_rollup', 'Anonymous');

is($node->safe_psql('postgres', 'SELECT batches FROM es_projections'),
	$batches + $batches / 10, 'every event was a batch of its own');
for my $kind (@kinds)
{
	cmp_ok($after{$kind} - $before{$kind}, '<=', 256,
		"the memory of the $kind does not grow over $batches batches");
	diag("private memory of the $kind: $before{$kind} kB, and $after{$kind} kB after $batches batches");
}

#
# No work
#

my $activity = q{
	SELECT pg_snapshot_xmax(pg_current_snapshot()), pg_current_wal_insert_lsn(),
		(SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		  WHERE a.backend_type LIKE 'es %'),
		(SELECT count(*) FROM pg_stat_activity
		  WHERE backend_type LIKE 'es %' AND (xact_start IS NOT NULL OR backend_xid IS NOT NULL
				OR backend_xmin IS NOT NULL OR state <> 'idle'))};

# Both queries know all they need, and whoever was woken by the last event is
# asleep again.
$node->poll_query_until('postgres', 'SELECT position = es_settled() FROM es.settled');
my $session = EsClient->connect($node, 'postgres');
my @at_first = $session->selectrow_array($activity);
sleep 1;
my %pids = map { $_ => scalar $node->worker_pid($_, 'postgres') } @kinds;
@at_first = $session->selectrow_array($activity);
my %switches = of_workers('status', 'voluntary_ctxt_switches');
my %cpu = map { $_ => join ' ', (split ' ', slurp_file("/proc/$pids{$_}/stat"))[ 13, 14 ] } @kinds;

sleep 4;
is_deeply({ of_workers('status', 'voluntary_ctxt_switches') }, \%switches,
	'idle workers do not wake up');
is_deeply({ map { $_ => join ' ', (split ' ', slurp_file("/proc/$pids{$_}/stat"))[ 13, 14 ] } @kinds },
	\%cpu, 'idle workers use no processor');

my @at_last = $session->selectrow_array($activity);
is($at_last[0], $at_first[0], 'idle workers take no transaction ids');
is($at_last[1], $at_first[1], 'idle workers write no WAL');
is($at_last[2], 0, 'idle workers hold no lock');
is($at_last[3], 0, 'idle workers hold no transaction, xid or snapshot, and show as idle');

#
# Who notifies
#

my $listener = EsClient->connect($node, 'postgres');
$listener->do('LISTEN es');
for my $n (1 .. 5)
{
	my ($position) = $session->selectrow_array(q{SELECT position FROM es_append('thing-1', 'THING_DONE')});
	my %heard;
	my $deadline = time + $EsNode::patience;

	until ($heard{$position} or time > $deadline)
	{
		$listener->ping;
		while (my $notification = $listener->pg_notifies)
		{
			my (undef, $pid, $payload) = @$notification;

			$heard{$1} = $pid if $payload =~ /"position":(\d+)/;
		}
	}
	is($heard{$position}, $pids{scheduler}, 'news come from the scheduler and not from who appends')
	  if $n == 1 or ($heard{$position} // 0) != $pids{scheduler};
}

#
# A restart
#

my ($settled, $last) = split /\|/, $node->safe_psql('postgres', q{
	BEGIN;
	SELECT es_append('thing-1', 'NEVER') \g /dev/null
	ROLLBACK;
	SELECT es_settled(), max(position) FROM es.event});
for my $mode ('fast', 'immediate')
{
	$node->stop($mode);
	$node->start;
	cmp_ok($node->safe_psql('postgres', 'SELECT es_settled()'), '>=', $settled,
		"after a stop ($mode) the settled position is not behind");
	is($node->safe_psql('postgres', 'SELECT max(position) FROM es_read(0, NULL)'), $last,
		"after a stop ($mode) readers see all");
	ok($node->poll_query_until('postgres', "SELECT position >= $settled FROM es.settled"),
		"after a stop ($mode) the settled position is written down");

	my $position = $node->safe_psql('postgres', q{SELECT position FROM es_append('thing-1', 'THING_DONE')});
	cmp_ok($position, '>', $settled, "after a stop ($mode) positions go on above all that were handed out");
	ok($node->wait_caught_up('postgres', 'latest'), "after a stop ($mode) the projection goes on");
	$settled = $last = $position;
}
is($node->safe_psql('postgres', q{SELECT sum(events) = (SELECT count(*) FROM es.event) FROM latest}),
	't', 'through all that each event was applied once');

$node->stop;

done_testing();
