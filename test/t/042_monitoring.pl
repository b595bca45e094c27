# 042_monitoring.pl
#	  What the documentation offers for monitoring works: each query runs as a
#	  role that may only read, and the dashboard shows metrics that there are.
#	  es_top is tried in a terminal, and counters outlive a restart.

use strict;
use warnings;

use EsNode;
use IPC::Run;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = EsNode->create('monitoring');

$node->safe_psql('postgres', q{
	CREATE TABLE m (stream text, n int);
	SELECT es_create_projection('orders', $$
		INSERT INTO m SELECT stream, (payload->>'n')::int FROM es_batch $$, tables => '{m}');
	SELECT count(es_append('order-' || i, 'T', jsonb_build_object('n', i))) FROM generate_series(1, 100) i;
	CREATE ROLE watcher LOGIN;
	SELECT es_grant('watcher', 'reader')});
ok($node->wait_caught_up('postgres', 'orders'), 'the projection catches up');

#
# The queries of postgres_exporter.
#
my (%queries, %columns, $name);
foreach my $line (split /\n/, slurp_file('doc/monitoring/queries.yaml'))
{
	$name = $1 if $line =~ /^(\w+):$/;
	$queries{$name} = $1 if $line =~ /^  query: "(.*)"$/;
	push @{ $columns{$name} }, $1 if $line =~ /^    - (\w+): \{usage: "(?:LABEL|GAUGE|COUNTER)", description: ".+"\}$/;
}
cmp_ok(scalar keys %queries, '>=', 5, 'there are queries');
foreach my $query (sort keys %queries)
{
	my $out = $node->safe_psql('postgres', $queries{$query},
		extra_params => [ '-U', 'watcher', '-P', 'tuples_only=off', '-P', 'footer=off' ]);
	my ($header, @rows) = split /\n/, $out;

	is_deeply([ split /\|/, $header ], $columns{$query}, "$query has the columns that it describes");
	ok(@rows > 0 || $query eq 'es_rebuild', "$query finds something");
}

my $dashboard = decode_json(slurp_file('doc/monitoring/dashboard.json'));
my %metrics = map { my $q = $_; map { ("${q}_$_" => 1) } @{ $columns{$q} } } keys %columns;

# What Grafana asks of a dashboard that is imported.
ok($dashboard->{title} && $dashboard->{uid} =~ /^[\w-]{1,40}$/ && $dashboard->{schemaVersion} >= 30
	  && !defined $dashboard->{id}, 'the dashboard can be imported');
my ($source) = grep { $_->{type} eq 'datasource' } @{ $dashboard->{templating}{list} };
is($source->{query}, 'prometheus', 'whoever imports it chooses the data source');
my (%ids, %cells);
foreach my $panel (@{ $dashboard->{panels} })
{
	my ($x, $y, $w, $h) = @{ $panel->{gridPos} }{qw(x y w h)};
	my $overlap = 0;

	foreach my $row ($y .. $y + $h - 1)
	{
		$overlap += $cells{"$row $_"}++ foreach $x .. $x + $w - 1;
	}
	ok(!$ids{ $panel->{id} }++ && $x + $w <= 24 && !$overlap && $panel->{type} =~ /^(stat|timeseries)$/,
		"the panel \"$panel->{title}\" has a place of its own");
	is($panel->{datasource}{uid}, "\${$source->{name}}", 'and shows what the data source has');
}
foreach my $panel (@{ $dashboard->{panels} })
{
	my @used = map { $_->{expr} =~ /\b(es_\w+)/g } @{ $panel->{targets} };

	ok(@used > 0, "the panel \"$panel->{title}\" shows something");
	is_deeply([ grep { !$metrics{$_} } @used ], [],
		"the panel \"$panel->{title}\" shows metrics that there are");
}

#
# es_top in a terminal, as it is meant to be looked at.
#
SKIP:
{
	skip 'needs IO::Pty', 2 unless eval { require IO::Pty; 1 };

	my ($in, $out) = ('', '');
	my $timer = IPC::Run::timeout($EsNode::patience);
	my $psql = IPC::Run::start([ 'psql', '-X', $node->connstr('postgres') ],
		'<pty<', \$in, '>pty>', \$out, $timer);

	$node->safe_psql('postgres', q{SELECT es_pause('orders')});
	$node->safe_psql('postgres', q{
		SELECT count(es_append('order-' || i, 'T', '{"n": 1}')) FROM generate_series(1, 1000) i});
	$in .= "TABLE es_top \\watch 1\n";
	$psql->pump until $out =~ /orders\s*\|\s*paused\s*\|\s*#####\.{5}\s*\|\s*1000 .*orders\s*\|/s;
	pass('a projection that is a thousand events behind has a bar for it, every second');
	$node->safe_psql('postgres', q{SELECT es_resume('orders')});
	$psql->pump until $out =~ /orders\s*\|\s*caught up\s*\|\s*\.{10}\s*\|\s*0 /s;
	pass('and none when it has caught up');
	$psql->signal('INT');
	$in .= "\\q\n";
	eval { $psql->finish };
}
ok($node->wait_caught_up('postgres', 'orders'), 'the projection catches up');

my $count = q{SELECT events_applied, batches > 0 FROM es_projections};
my $before = $node->safe_psql('postgres', $count);
$node->restart;
is($node->safe_psql('postgres', $count), $before, 'counters outlive a restart');

#
# What is wrong is said: a worker that cannot start.
#
$node->safe_psql('postgres', q{
	CREATE ROLE app LOGIN;
	SELECT es_grant('app', 'projector');
	CREATE TABLE t (x int);
	ALTER TABLE t OWNER TO app});
$node->safe_psql('postgres', q{
	SELECT es_create_projection('apps', 'INSERT INTO t SELECT 1 FROM es_batch');
}, extra_params => [ '-U', 'app' ]);
ok($node->wait_caught_up('postgres', 'apps'), 'a projection of another role');
is($node->safe_psql('postgres', 'SELECT ok, problems FROM es_health()'), 't|{}', 'all is well');

$node->stop;
done_testing();
