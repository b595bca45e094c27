#
# A mixed load at a bounded rate, for a while: no process grows, nobody holds a
# transaction open, no table bloats, and in the end all invariants hold.
#
#	ES_SOAK			for how many seconds (default: 15; make soak: an hour)
#	ES_FAULT_SEED	what the clients do follows from it (default: 1)
#
use strict;
use warnings;
use EsFaults;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $seconds = $ENV{ES_SOAK} // 15;
my $node = EsNode->create('main', conf => q{
	autovacuum_naptime = 1
	log_min_messages = warning
	max_connections = 30
});
my $faults = EsFaults->new($node, PostgreSQL::Test::Utils::tempdir, $ENV{ES_FAULT_SEED} // 1);

$faults->prepare;

# Kilobytes of a process that are its own: not those of shared memory.
sub private_memory
{
	my ($pid) = @_;
	my $sum = 0;

	open(my $map, '<', "/proc/$pid/smaps_rollup") or return;
	while (my $line = <$map>)
	{
		$sum += $1 if $line =~ /^(?:Private_Dirty|Private_Clean):\s+(\d+) kB/;
	}
	return $sum;
}

my (%memory, %held, @sizes);

sub sample
{
	foreach my $row (split /\n/, $node->safe_psql('postgres', q{
		SELECT pid, kind || coalesce(' ' || role, '') FROM es_stat_workers}))
	{
		my ($pid, $what) = split /\|/, $row;
		my $kb = private_memory($pid);

		push @{ $memory{"$what ($pid)"} }, $kb if $kb;
	}

	# A worker that is idle at two looks in a row must hold no snapshot.
	foreach my $row (split /\n/, $node->safe_psql('postgres', q{
		SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'es %'
		   AND state = 'idle' AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL)}))
	{
		$held{$row}++;
	}
	push @sizes, $node->safe_psql('postgres', q{
		SELECT sum(pg_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		 WHERE n.nspname = 'es' AND c.relkind IN ('r', 'i') AND c.relname !~ '^(event|tag|command_log|snapshot)'});
	return;
}

$faults->start('soak', clients => 3);
$faults->round;
usleep(2e6);
my $end = time + $seconds - 2;
my $pause = $seconds > 100 ? 5 : 0.5;
while (time < $end)
{
	sample();
	usleep($pause * 1e6);
}
my $verdict = $faults->finish;

is_deeply($verdict->{violations}, [], 'all invariants hold');
cmp_ok($verdict->{events}, '>', $seconds * 10, 'there was a load');

foreach my $process (sort keys %memory)
{
	my @kb = @{ $memory{$process} };

	next if @kb < 8;
	# The first third is warming up: caches and plans.
	my @early = sort { $a <=> $b } @kb[ int(@kb / 3) .. int(@kb / 2) ];
	my @late = sort { $a <=> $b } @kb[ -int(@kb / 6) - 1 .. -1 ];
	my ($from, $to) = ($early[ $#early / 2 ], $late[ $#late / 2 ]);

	note("$process: $from kB, then $to kB in " . @kb . ' samples');
	cmp_ok($to, '<=', $from * 1.05 + 512, "the memory of the $process is flat");
}
is_deeply(\%held, {}, 'no idle worker holds a snapshot or an xid');
note("sizes of the tables that are updated: @sizes[0, -1]");
cmp_ok($sizes[-1], '<=', 4 * 1024 * 1024, 'the tables that are updated stay small');
diag(sprintf("%d events and %d operations in %d s, all invariants held", $verdict->{events},
	$verdict->{acknowledged}, $seconds)) if !@{ $verdict->{violations} };
$node->stop;
done_testing();
