# growth.pl
#	  What grows with the log: its size on disk, the cost of using it, the
#	  memory of a worker.

use strict;
use warnings;

use Bench;
use Time::HiRes qw(sleep);

row size => 'bytes on disk of an event with its indexes, beside raw', sub {
	my $n = $opt{streams} * 2;
	my $size = sub {
		my ($database, $table) = @_;

		return value($database, "SELECT pg_total_relation_size('$table')::float8 / $n");
	};

	database('plain', scripts => ['raw']);
	database('bare', es => 1);
	load_events('bare', $n);
	sql('plain', qq{
		INSERT INTO raw (version, stream, category, type, payload)
		SELECT row_number() OVER (PARTITION BY s ORDER BY n), 'account-' || s, 'account',
			'Deposited', '$payload'
		  FROM (SELECT n, (1 + random() * ($opt{streams} - 1))::int AS s
				  FROM generate_series(1, $n) n) r
		 ORDER BY n;
		VACUUM raw});
	figure(title => 'size of an event, indexes in', setting => "$n events, payload of 300 bytes",
		target => '<= 1.0', per => 'bytes', ours => [ $size->('bare', 'es.event') ],
		base => [ $size->('plain', 'raw') ]);
	note('indexes of es.event, bytes an event: ' . join(', ', split /\n/, sql('bare', qq{
		SELECT indexrelid::regclass || ' ' || round(pg_relation_size(indexrelid) / $n.0)
		  FROM pg_index WHERE indrelid = 'es.event'::regclass ORDER BY 1})));
	check_log('bare', $n);
	drop_database($_) foreach 'plain', 'bare';
};

# Logs of three sizes, so that rounds can alternate between them.
my @sizes;

sub make_logs_of_sizes
{
	my %done;

	return if @sizes;
	@sizes = grep { $_ <= $opt{growth} && !$done{$_}++ } 100_000, 1_000_000, $opt{growth};
	foreach my $n (@sizes)
	{
		database("log_$n", es => 1, scripts => ['es']);
		load_events("log_$n", $n);
		keep_projector("log_$n");
	}
	return;
}

# Milliseconds to project the last 100,000 events of a log into an empty table.
sub project_last
{
	my ($n) = @_;

	drop_projections("log_$n");
	sql("log_$n", 'TRUNCATE balance');
	return 1000 * seconds_of(sub {
		sql("log_$n", q{
			SELECT es_create_projection('balance', $$
				INSERT INTO balance SELECT stream, sum((payload->>'amount')::bigint)
				  FROM es_batch GROUP BY stream
				ON CONFLICT (stream) DO UPDATE SET amount = balance.amount + excluded.amount$$,
				start_after => greatest(es_settled() - 100000, 0));
			SELECT es_wait('balance', es_settled(), '10 min')});
	});
}

# Microseconds to read a page of a log, from a position on.
sub page
{
	my ($script, $n, $first) = @_;

	return 1e6 / pgbench("log_$n", $script, vars => { first => $first, last => $n });
}

row growth => 'the cost of append, read and projection as the log grows', sub {
	make_logs_of_sizes();
	my %appended = map { $_ => $_ } @sizes;
	my %work = (
		append => sub {
			my ($n) = @_;
			return 1e6 / pgbench("log_$n", 'append', count => \$appended{$n}, sync => 'off');
		},
		read => sub { page('read', $_[0], $_[0] - $sizes[0]) },
		projection => \&project_last,
		# What is not in a processor's cache takes longer, for whoever reads it.
		'read anywhere' => sub { page('read', $_[0], 0) },
		'plain SELECT anywhere' => sub { page('raw_read', $_[0], 0) });

	foreach my $what ('append', 'read', 'projection', 'read anywhere', 'plain SELECT anywhere')
	{
		my $target = $what =~ /anywhere/ ? undef : '<= 1.15';
		my $values = rounds([ map { my $n = $_; [ "$what, $n" => sub { $work{$what}->($n) } ] } @sizes ],
			warm_up => 1, target => $target);

		foreach my $n (@sizes[ 1 .. $#sizes ])
		{
			figure(title => "cost of $what", setting => "$n events, beside $sizes[0]",
				target => $target, per => $what eq 'projection' ? 'ms' : 'µs',
				ours => $values->{"$what, $n"}, base => $values->{"$what, $sizes[0]"});
		}
	}
	foreach my $n (@sizes)
	{
		drop_projections("log_$n");
		check_log("log_$n", $appended{$n});
	}
	drop_database("log_$_") foreach @sizes[ 0 .. $#sizes - 1 ];
};

# Private memory of a process, in megabytes.  The kernel calls a shared buffer
# private too as long as nobody else has touched it, so look at the mappings.
sub private_memory
{
	my ($pid) = @_;
	my $kilobytes = 0;
	my $private;

	open(my $in, '<', "/proc/$pid/smaps") or return;
	while (my $line = <$in>)
	{
		$private = $1 eq 'p' if $line =~ /^[0-9a-f]+-[0-9a-f]+ ...([ps]) /;
		$kilobytes += $1 if $private && $line =~ /^Private_(?:Clean|Dirty):\s+(\d+)/;
	}
	return $kilobytes / 1024;
}

row memory => 'private memory of a worker that applies the whole of the largest log', sub {
	make_logs_of_sizes();
	my $n = $sizes[-1];
	my $database = "log_$n";
	my (@early, @late);

	drop_projections($database);
	sql($database, q{
		TRUNCATE balance;
		SELECT es_create_projection('balance', $$
			INSERT INTO balance SELECT stream, sum((payload->>'amount')::bigint)
			  FROM es_batch GROUP BY stream
			ON CONFLICT (stream) DO UPDATE SET amount = balance.amount + excluded.amount$$)});
	for (;;)
	{
		my ($pid, $done) = split /\|/, sql($database, q{
			SELECT (SELECT pid FROM es_stat_workers WHERE kind = 'projector' LIMIT 1),
				   (SELECT 1.0 * "position" / settled_position FROM es_projections WHERE name = 'balance')});

		if ($pid && defined(my $memory = private_memory($pid)))
		{
			push @{ $done < 0.5 ? \@early : \@late }, $memory if $done > 0.1;
		}
		last if $done >= 1;
		sleep 0.2;
	}
	if (@early && @late)
	{
		figure(title => 'memory of a worker, second half of the log', setting => "$n events, beside the first half",
			target => '<= 1.1', per => 'MB', ours => [ median(@late) ], base => [ median(@early) ]);
		my ($most) = sort { $b <=> $a } @early, @late;
		check(sprintf('a worker needs at most 40 MB (%.1f)', $most), $most <= 40);
	}
	check_log($database, value($database, 'SELECT count(*) FROM es.event'));
	drop_database($database);
};

1;
