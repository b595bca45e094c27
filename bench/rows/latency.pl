# latency.pl
#	  How soon a committed event is in the read model of an idle system.

use strict;
use warnings;

use Bench;

# Microseconds, sorted, of samples that tools/client takes.
sub samples
{
	my ($kind) = @_;

	local $ENV{PGDATABASE} = 'quiet';
	my @samples = sort { $a <=> $b } map { chomp; $_ }
	  qx{$ENV{BENCH_TOOLS}/client latency $kind $opt{samples}};

	die "client latency $kind failed" if @samples != $opt{samples};
	return @samples;
}

row latency => 'commit to row visible in the read model, beside LISTEN and NOTIFY', sub {
	database('quiet', es => 1);
	sql('quiet', q{
		CREATE TABLE latency (one boolean PRIMARY KEY, amount bigint NOT NULL);
		SELECT es_create_projection('latency', $$
			INSERT INTO latency SELECT true, sum((payload->>'amount')::bigint) FROM es_batch HAVING count(*) > 0
			ON CONFLICT (one) DO UPDATE SET amount = latency.amount + excluded.amount$$)});
	samples('wait');		# the worker is up, and its plans are made

	my %rounds;
	foreach my $round (1 .. $opt{target_rounds})
	{
		foreach my $kind (qw(notify visible wait))
		{
			my @samples = samples($kind);

			push @{ $rounds{$kind}{p50} }, $samples[ $#samples * 0.5 ];
			push @{ $rounds{$kind}{p99} }, $samples[ $#samples * 0.99 ];
		}
	}
	foreach my $quantile (qw(p50 p99))
	{
		figure(title => 'commit to row visible', setting => "idle, $quantile", target => '<= 3',
			per => 'µs', ours => $rounds{visible}{$quantile}, base => $rounds{notify}{$quantile});
		figure(title => 'commit to es_wait() returns', setting => "idle, $quantile", target => '<= 3',
			per => 'µs', ours => $rounds{wait}{$quantile}, base => $rounds{notify}{$quantile});
	}
	check('read model latency says what the log says', value('quiet',
		'SELECT amount = (SELECT count(*) FROM es.event) FROM latency') eq 't');
	drop_database('quiet');
};

1;
