# Bench.pm
#	  What the rows of the benchmark are written with: databases, loads, rounds
#	  that alternate, and the table of results.

package Bench;

use strict;
use warnings;

use Exporter 'import';
use File::Basename;
use IPC::Open3;
use List::Util qw(sum min max);
use POSIX ();
use Time::HiRes qw(time sleep);

our @EXPORT = qw(row sql value try_sql database drop_database load_events pgbench
  rounds compare figure median start stop note has check check_log seconds_of
  restart_server drop_projections keep_projector %opt $payload $here);

our $here = dirname(__FILE__);

# The sizes of things; bench.pl sets them from its arguments.
our %opt = (
	seconds => $ENV{BENCH_SECONDS} // 2,
	rounds => $ENV{BENCH_ROUNDS} // 3,
	target_rounds => 3 * ($ENV{BENCH_ROUNDS} // 3),
	events => $ENV{BENCH_EVENTS} // 1_000_000,
	growth => $ENV{BENCH_GROWTH} // 10_000_000,
	streams => 100_000,
	clients => [ 1, 8, 32 ],
	sync => [ 'on', 'off' ],
	samples => 300);

# 300 bytes as a client sends them.
our $payload = '{"amount": 7, "note": "' . ('x' x 230) . '", "currency": "EUR", "by": "teller-17"}';

our @rows;		# all that there are, in the order of the table
our @figures;	# what was measured
our @notes;
our $failures = 0;

# Say what a row of the benchmark measures, and how.
sub row
{
	my ($name, $title, $run) = @_;

	push @rows, { name => $name, title => $title, run => $run };
	return;
}

#
# The server
#

# Run a command; dies with its errors.
sub output_of
{
	my ($input, @command) = @_;
	my ($in, $out);
	my $pid = open3($in, $out, undef, @command);

	print $in $input;
	close $in;
	my $output = do { local $/; <$out> } // '';
	waitpid($pid, 0);
	die "@command[0, 1] ... failed:\n$output" if $?;
	return $output;
}

# Run SQL, and return what it printed.
sub sql
{
	my ($database, $sql) = @_;
	my $output = output_of($sql, 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $database);

	chomp $output;
	return $output;
}

# The last value that SQL printed.
sub value
{
	return (split /\n/, sql(@_))[-1];
}

# Run SQL that this build may not know; false, with the reason in $@, if so.
sub try_sql
{
	my ($database, $sql) = @_;

	return eval { sql($database, $sql); 1 };
}

sub has
{
	my ($database, $function) = @_;

	return value($database,
		"SELECT count(*) FROM pg_proc WHERE proname = '$function'") > 0;
}

# Make a database anew with the scripts of bench/sql named, and es if wanted.
sub database
{
	my ($name, %params) = @_;

	drop_database($name);
	sql('postgres', "CREATE DATABASE $name");
	sql($name, 'CREATE EXTENSION es') if $params{es};
	foreach my $script (@{ $params{scripts} // [] })
	{
		output_of('', 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-d', $name,
			'-f', "$here/sql/$script.sql");
	}
	return $name;
}

sub drop_database
{
	my ($name) = @_;

	sql('postgres', "DROP DATABASE IF EXISTS $name WITH (FORCE)");
	return;
}

# Append events to random streams: two sessions, each with streams of its own, in
# transactions that touch few enough to lock them one by one.
sub load_events
{
	my ($database, $n) = @_;
	my $each = 250;
	my @loaders;

	foreach my $session (0, 1)
	{
		my $pid = fork() // die "fork: $!";

		if ($pid == 0)
		{
			my $transactions = int($n / $each / 2 + 0.5 * ($session == 0));

			$ENV{PGOPTIONS} = '-c synchronous_commit=off';
			eval {
				sql($database, qq{DO \$\$
					BEGIN
						FOR i IN 1..$transactions LOOP
							PERFORM es_append('account-' || 2 * ceil(random() * $opt{streams} / 2)::int - $session,
								'Deposited', '$payload') FROM generate_series(1, $each);
							COMMIT;
						END LOOP;
					END \$\$});
				1;
			} or print(STDERR $@), POSIX::_exit(1);
			POSIX::_exit(0);
		}
		push @loaders, $pid;
	}
	foreach my $pid (@loaders)
	{
		waitpid($pid, 0);
		die 'loading failed' if $?;
	}
	sql($database, 'VACUUM ANALYZE es.event');
	return;
}

# Let the database's projector run whatever projections come and go, so that
# its start is not measured with them.
sub keep_projector
{
	my ($database) = @_;

	sql($database, q{
		SELECT es_create_projection('idle', 'SELECT FROM es_batch', categories => '{none}');
		SELECT es_wait('idle', es_settled(), '1 min')});
	return;
}

sub drop_projections
{
	my ($database) = @_;

	sql($database, "SELECT es_drop_projection(name) FROM es.projection WHERE name <> 'idle'");
	return;
}

# Start a process that prints a line when it is ready; stop() it.
sub start
{
	my ($database, @command) = @_;

	local $ENV{PGDATABASE} = $database;
	my $pid = open(my $out, '-|', @command) // die "$command[0]: $!";
	my $line = <$out>;
	die "$command[0] did not start" if !defined $line;
	return { pid => $pid, out => $out };
}

sub stop
{
	my ($process) = @_;

	kill 'TERM', $process->{pid};
	close $process->{out};
	return;
}

# Start the server anew, with a library preloaded or with none.
sub restart_server
{
	my ($preload) = @_;
	my $environment = "$ENV{PG_CLUSTER_CONF_ROOT}/$ENV{PGVERSION}/regress/environment";

	open(my $file, '>', $environment) or die "$environment: $!";
	print $file "LD_PRELOAD = '$preload'\n" if $preload;
	close $file;
	output_of('', 'pg_ctlcluster', '-m', 'fast', $ENV{PGVERSION}, 'regress', $_)
	  foreach 'stop', 'start';
	return;
}

#
# Loads
#

# Every load writes versions of its own.
my $base = 0;

# Run a script of bench/pgbench; returns transactions a second.  Transactions
# are counted into ${$params{count}}, and none may fail; with "retry" they are
# begun again until they do not, which is counted into ${$params{retries}}.
sub pgbench
{
	my ($database, $script, %params) = @_;
	my $clients = $params{clients} // 1;
	my %vars = (
		n => 0,
		base => $base += 10_000_000_000,
		streams => $opt{streams},
		payload => $payload,
		%{ $params{vars} // {} });

	local $ENV{PGOPTIONS} = '-c synchronous_commit=' . ($params{sync} // 'on');
	my $output = output_of('', 'pgbench', '-n', '-M', 'prepared',
		'-c', $clients, '-j', min($clients, 2), '-T', $params{seconds} // $opt{seconds},
		'-f', "$here/pgbench/$script.sql", $params{retry} ? ('--max-tries', 0) : (),
		(map { ('-D', "$_=$vars{$_}") } sort keys %vars), $database);

	my ($done) = $output =~ /^number of transactions actually processed: (\d+)/m;
	my ($failed) = $output =~ /^number of failed transactions: (\d+)/m;
	my ($retries) = $output =~ /^total number of retries: (\d+)/m;
	my ($tps) = $output =~ /^tps = ([\d.]+)/m;
	die "pgbench $script:\n$output" if !defined $done || $output =~ /aborted/;
	check("no transaction of $script fails", ($failed // 0) == 0);
	${ $params{count} } += $done if $params{count};
	${ $params{retries} } += $retries // 0 if $params{retries};
	return $done > 0 ? $tps : 0;
}

# Seconds that something takes.
sub seconds_of
{
	my ($what) = @_;
	my $begin = time;

	$what->();
	return time - $begin;
}

#
# Rounds and figures
#

sub median
{
	my @sorted = sort { $a <=> $b } @_;
	my $middle = int(@sorted / 2);

	return @sorted % 2 ? $sorted[$middle] : ($sorted[ $middle - 1 ] + $sorted[$middle]) / 2;
}

# Let contestants, [name, code that returns a number] each, take turns.  Every
# other round goes backwards, so that nobody always follows the same one.
# Returns the numbers of each by name.  A round that does not count comes first
# where "warm_up" is given.  Where there is a target there are more rounds: what
# else the machine does falls on some of them only.
sub rounds
{
	my ($contestants, %params) = @_;
	my $rounds = $params{target} ? $opt{target_rounds} : $opt{rounds};
	my %values;

	foreach my $round (($params{warm_up} ? 0 : 1) .. $rounds)
	{
		foreach my $contestant ($round % 2 ? @$contestants : reverse @$contestants)
		{
			my ($name, $code) = @$contestant;
			my $value = $code->();

			push @{ $values{$name} }, $value if $round > 0;
			printf STDERR "    %-28s %12.1f%s\n", $name, $value, $round ? '' : ' (warm-up)';
		}
	}
	return \%values;
}

# Take the ratio of two contestants of the same rounds into the table.
#
#	row, title		whose ratio it is
#	setting			under what circumstances
#	ours, base		their numbers, one for each round
#	per				what the numbers are
#	target			for example ">= 0.9", or undef
#	inverse			the numbers are costs
sub figure
{
	my (%f) = @_;

	$f{ratios} = [ map { $f{ours}[$_] / $f{base}[$_] } 0 .. $#{ $f{ours} } ];
	$f{ratio} = median(@{ $f{ratios} });
	if ($f{target})
	{
		my ($operator, $limit) = split ' ', $f{target};
		my $rounded = sprintf '%.2f', $f{ratio};

		$f{met} = $operator eq '>=' ? $rounded >= $limit : $rounded <= $limit;
	}
	push @figures, \%f;
	printf STDERR "  %s, %s: %.2f (%s)\n", $f{title}, $f{setting}, $f{ratio},
	  $f{target} // 'no target';
	return;
}

# Rounds of two contestants and their ratio.
sub compare
{
	my (%params) = @_;
	my $values = rounds([ [ base => $params{base} ], [ ours => $params{ours} ] ],
		warm_up => $params{warm_up}, target => $params{target});

	figure(%params, base => $values->{base}, ours => $values->{ours});
	return;
}

# How many of the figures were measured on a machine that did something else,
# too: what they stand beside was twice as fast in one round as in another, one
# of nine left aside at either end.
sub disturbed
{
	my $n = 0;

	foreach my $figure (@figures)
	{
		my @sorted = sort { $a <=> $b } @{ $figure->{base} };
		my $aside = int(@sorted / 9);

		$n++ if $sorted[ -1 - $aside ] > 2 * $sorted[$aside];
	}
	return $n;
}

# A sentence to go below the table.
sub note
{
	my ($text) = @_;

	push @notes, $text;
	print STDERR "  $text\n";
	return;
}

# What must hold, however fast it is.
sub check
{
	my ($what, $holds) = @_;

	return if $holds;
	$failures++;
	note("**FAILED**: $what");
	return;
}

# The log holds the events that were appended, each stream's versions without
# a gap and its positions in the order of its versions, and read models say
# what the log says.
sub check_log
{
	my ($database, $events) = @_;

	my $count = value($database, 'SELECT count(*) FROM es.event');
	check("$database: $events events were appended, $count are in the log",
		$count == $events);
	check("$database: versions have no gaps", value($database, q{
		SELECT count(*) FROM (
			SELECT FROM es.event GROUP BY stream
			HAVING min(version) <> 1 OR max(version) <> count(*)) s}) == 0);
	check("$database: positions rise with versions", value($database, q{
		SELECT count(*) FROM (
			SELECT "position" < lag("position") OVER (PARTITION BY stream ORDER BY version) AS wrong
			  FROM es.event) s WHERE wrong}) == 0);
	foreach my $projection (split /\n/, sql($database, 'SELECT DISTINCT name FROM es.projection'))
	{
		sql($database, "SELECT es_wait('$projection', es_settled(), '10 min')")
		  if value($database, "SELECT mode FROM es.projection WHERE name = '$projection'") eq 'async';
	}
	foreach my $model (
		[ balance => 'stream, sum((payload->>\'amount\')::bigint)::bigint', 'stream' ],
		[ daily => 'category, recorded_at::date, count(*), sum((payload->>\'amount\')::bigint)::bigint',
			'category, recorded_at::date' ])
	{
		my ($table, $columns, $key) = @$model;

		next if value($database, "SELECT count(*) FROM es.projection WHERE name = '$table'") == 0;
		check("$database: read model $table says what the log says", value($database, qq{
			WITH log AS (SELECT $columns FROM es.event GROUP BY $key)
			SELECT (SELECT count(*) FROM (TABLE log EXCEPT TABLE $table) a)
				 + (SELECT count(*) FROM (TABLE $table EXCEPT TABLE log) b)}) == 0);
	}
	return;
}

#
# The table
#

# A number with as many digits as say something.
sub number
{
	my ($n) = @_;

	return sprintf('%.1f', $n) if $n < 100;
	my $text = sprintf '%.0f', $n;
	1 while $text =~ s/^(\d+)(\d{3})/$1,$2/;
	return $text;
}

sub table
{
	my $text = "| what | setting | ratio | min..max | target | ours | beside | unit |\n"
	  . "|---|---|---|---|---|---|---|---|\n";

	foreach my $f (@figures)
	{
		$text .= sprintf "| %s | %s | **%.2f** | %.2f..%.2f | %s | %s | %s | %s |\n",
		  $f->{title}, $f->{setting}, $f->{ratio}, min(@{ $f->{ratios} }),
		  max(@{ $f->{ratios} }),
		  $f->{target} ? "$f->{target} " . ($f->{met} ? 'met' : '**missed**') : '',
		  number(median(@{ $f->{ours} })), number(median(@{ $f->{base} })), $f->{per};
	}
	return $text;
}

1;
