#
# bench.pl [quick] [ROW ...]
#	  The benchmark itself; bench/run starts it in a throw-away cluster.
#
use strict;
use warnings;

use FindBin;
use lib $FindBin::Bin;
use Bench;
use POSIX qw(strftime);

# The order of the table.
my @files = qw(append batch hot decide projection read latency growth);

foreach my $file (@files)
{
	do "$here/rows/$file.pl" or die "$file.pl: " . ($@ || $!);
}

my ($quick, @wanted) = arguments(@ARGV);

$ENV{PGHOST} = socket_directory();
make_quick() if $quick;

my $begin = time;
foreach my $row (@wanted ? @wanted : @Bench::rows)
{
	print STDERR "== $row->{name}: $row->{title}\n";
	eval { $row->{run}->(); 1 } or check("row $row->{name} ends with: $@", 0);
}

my $report = report();
print $report;
save($report) if !@wanted && !$quick;
exit($Bench::failures ? 1 : 0);

sub arguments
{
	my @names = @_;
	my %rows = map { $_->{name} => $_ } @Bench::rows;

	if (@names && $names[0] eq 'list')
	{
		printf "%-18s %s\n", $_->{name}, $_->{title} foreach @Bench::rows;
		exit;
	}
	my $is_quick = @names && $names[0] eq 'quick';
	shift @names if $is_quick;
	foreach my $name (@names)
	{
		die "no such row: $name (see bench/run list)\n" if !$rows{$name};
	}
	return ($is_quick, map { $rows{$_} } @names);
}

# A look whether all works; the figures mean little.
sub make_quick
{
	$opt{seconds} = $ENV{BENCH_SECONDS} // 1;
	$opt{rounds} = $opt{target_rounds} = $ENV{BENCH_ROUNDS} // 3;
	$opt{events} = $ENV{BENCH_EVENTS} // 50_000;
	$opt{growth} = $ENV{BENCH_GROWTH} // 100_000;
	$opt{streams} = 10_000;
	$opt{clients} = [8];
	$opt{sync} = ['on'];
	$opt{samples} = 30;
	return;
}

# TCP would add the same to both sides of every ratio.
sub socket_directory
{
	my ($directory) = split /,/, value('postgres', 'SHOW unix_socket_directories');

	return $directory;
}

sub first_line_of
{
	my ($file, $pattern) = @_;

	open(my $in, '<', $file) or return '?';
	while (my $line = <$in>)
	{
		return $1 if $line =~ $pattern;
	}
	return '?';
}

# How long the disk takes to flush a page, in microseconds.
sub flush_time
{
	my $output = `pg_test_fsync -s 1 -f $ENV{BENCH_TOOLS}/flush 2>/dev/null`;

	return $output =~ /fdatasync\s+[\d.]+ ops\/sec\s+(\d+) usecs/ ? $1 : '?';
}

sub machine
{
	my $cores = () = `cat /proc/cpuinfo` =~ /^processor/mg;
	my $memory = first_line_of('/proc/meminfo', qr/MemTotal:\s+(\d+)/) / 1024 / 1024;

	return sprintf "%d cores (%s), %.0f GB of memory, Linux %s, a flush takes %s µs; %s, fsync on, "
	  . "wal_sync_method %s, shared_buffers %s, load average at the end %s.",
	  $cores, first_line_of('/proc/cpuinfo', qr/model name\s*:\s*(.*)/), $memory,
	  (POSIX::uname())[2], flush_time(),
	  (value('postgres', 'SELECT version()') =~ /^(\S+ \S+)/)[0],
	  value('postgres', 'SHOW wal_sync_method'), value('postgres', 'SHOW shared_buffers'),
	  first_line_of('/proc/loadavg', qr/^(\S+)/);
}

sub report
{
	my $text = "# What es costs\n\n"
	  . "Written by `make bench`; bench/NOTES.md says what lies behind the figures.\n\n"
	  . "A ratio is ours over what it stands beside, the median of rounds that alternated "
	  . "($opt{target_rounds} where there\nis a target, else $opt{rounds}), and the least and the "
	  . "greatest of them.  Throughput is better when greater,\ncost when less; the sign of the "
	  . "target tells which it is.\n\n"
	  . strftime('%Y-%m-%d', gmtime) . ": " . machine() . "\n"
	  . sprintf("Rounds of %d s, %d streams; the whole took %d min.\n\n",
		$opt{seconds}, $opt{streams}, (time - $begin) / 60)
	  . Bench::table();

	$text .= "\n" . join('', map { "- $_\n" } @Bench::notes) if @Bench::notes;
	$text .= sprintf "\n**%d of %d figures come from a machine that was busy with something else; measure again.**\n",
	  Bench::disturbed(), scalar @Bench::figures
	  if Bench::disturbed() > 0;
	$text .= $Bench::failures
	  ? "\n**$Bench::failures checks of what was written failed.**\n"
	  : "\nWhat was written was checked: the number of events, versions without gaps, positions "
	  . "in the\norder of versions, and every read model against the log.\n";
	return $text;
}

sub save
{
	my ($text) = @_;

	open(my $out, '>', "$ENV{BENCH_TOOLS}/RESULTS.md") or die $!;
	print $out $text;
	close $out;
	return;
}
