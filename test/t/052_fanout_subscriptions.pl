# Subscriptions under fire: 8 consumers share 16 partitions, are killed at
# random, and the server crashes.  ES_EVENTS sets how many events there are.

use strict;
use warnings;

use EsExample;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

my $events = $ENV{ES_EVENTS} // 100_000;
my $streams = 200;
my $consumers = 8;

my $node = EsNode->create('subscriptions', conf => "max_connections = 50\n");
my $worker = EsExample::build('worker');
my $output = "$ENV{TESTDIR}/workers.log";
my %running;
my $started = 0;

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Append a share of the events, to all streams in turn.
sub append
{
	my ($n) = @_;

	sql(qq{
		SELECT es_append_batch('load-' || s % $streams,
			(SELECT jsonb_agg(jsonb_build_object('type', 'WORK')) FROM generate_series(1, 10)))
		  FROM generate_series(1, $n / 10) s});
	return;
}

# A new consumer, under a name that was never there or, now and then, one that
# was.
sub start_worker
{
	my ($subscription, $mode) = @_;
	my $name = 'c' . (rand() < 0.3 ? 1 + int(rand($started)) : ++$started);

	# Two at a time with one name would be one consumer.
	$name = 'c' . ++$started if grep { $_ eq $name } values %running;
	my $pid = EsExample::start($output, $worker, $node->connstr('postgres'),
		$subscription, $name, $mode);
	$running{$pid} = $name;
	return;
}

sub kill_worker
{
	my ($pid) = @_;

	EsExample::end($pid, 'KILL');
	delete $running{$pid};
	return;
}

# Whether a condition on their positions holds for the partitions.
sub partitions
{
	my ($subscription, $condition) = @_;

	return sql(qq{SELECT $condition FROM es.subscription_partition
		WHERE subscription = '$subscription'}) eq 't';
}

# Let consumers work until all is acknowledged, killing one now and then.  When
# they are half way through what there is, the server crashes, and more events
# come.
sub consume
{
	my ($subscription, $mode, $more) = @_;
	my $deadline = time + 10 * $PostgreSQL::Test::Utils::timeout_default;
	my $begin = time;
	my $kills = 0;
	my $until = sub {
		my ($condition) = @_;

		until (partitions($subscription, $condition) || time > $deadline)
		{
			usleep(rand(300_000));
			next if $kills >= 40;
			kill_worker((keys %running)[ rand(keys %running) ]);
			start_worker($subscription, $mode);
			$kills++;
		}
	};

	sql(qq{SELECT es_create_subscription('$subscription', ARRAY['load'], partitions => 16,
		max_deliveries => 100)});
	start_worker($subscription, $mode) for 1 .. $consumers;
	$until->('avg("position") > (SELECT max("position") / 2 FROM es.event)');
	$node->stop('immediate');
	$node->start;
	append($more);
	$until->('min("position") >= (SELECT max("position") FROM es.event)');
	kill_worker($_) for keys %running;
	note(sprintf('%s: %d consumers were killed; %.0f s', $subscription, $kills, time - $begin));
	return;
}

sql(q{
	CREATE TABLE handled (id bigserial PRIMARY KEY, subscription text, consumer text,
		"position" bigint, stream text, version bigint);
	CREATE TABLE handed_out (id bigint DEFAULT nextval('handled_id_seq'), subscription text, "position" bigint);
	CREATE TABLE acknowledged (id bigint DEFAULT nextval('handled_id_seq'), subscription text, consumer text,
		"position" bigint);
	CREATE INDEX ON handled (subscription, "position");
	CREATE VIEW twice AS SELECT subscription, count(*) - count(DISTINCT "position") AS n
		FROM handled GROUP BY subscription;
	-- A stream goes on where it was, or goes back to what was not acknowledged.
	CREATE VIEW disorder AS
		SELECT * FROM (SELECT *, max(version) OVER (PARTITION BY subscription, stream ORDER BY id
				ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before FROM handled) h
		 WHERE version > coalesce(before, 0) + 1;
});

append($events / 2);
consume('least', 'least', $events / 2);
my $total = sql('SELECT count(*) FROM es.event');
cmp_ok($total, '>=', $events, "there are $total events");
is(sql(q{SELECT count(DISTINCT "position") FROM handled WHERE subscription = 'least'}), $total,
	'at least once: every event is handled, whoever is killed');
is(sql(q{SELECT count(*) FROM disorder WHERE subscription = 'least'}), 0,
	'the order of every stream is kept');
is(sql(q{
	SELECT count(*) FROM acknowledged a
	  JOIN handed_out h ON h.subscription = a.subscription AND h."position" = a."position"
	 WHERE h.id > a.id}), 0,
	'what was acknowledged is never handed out again');
cmp_ok(sql('SELECT count(*) FROM acknowledged'), '>', $events / 2, 'and most was, as far as the consumers know');
note('handled twice: ' . sql(q{SELECT n FROM twice WHERE subscription = 'least'}));

consume('exact', 'exact', $events / 100);
$total = sql('SELECT count(*) FROM es.event');
is(sql(q{SELECT count(*) || ' ' || count(DISTINCT "position") FROM handled WHERE subscription = 'exact'}),
	"$total $total", 'exactly once, with es_ack() in the transaction of the work');
is(sql(q{SELECT count(*) FROM disorder WHERE subscription = 'exact'}), 0,
	'in the order of every stream');
is(sql(q{SELECT count(*) FROM (SELECT 1 FROM handled WHERE subscription = 'exact'
		 GROUP BY stream HAVING array_agg(version ORDER BY id) <> array_agg(version ORDER BY version)) s}), 0,
	'without going back');
is(sql(q{SELECT count(*) FROM es.subscription_dead_letter}), 0, 'nothing was parked');
is(slurp_file($output), '', 'and no consumer had anything to complain of');

# All consumers are dead: their partitions fall to the next one when the leases
# end, evenly.
$node->poll_query_until('postgres', q{SELECT bool_and(lease_until < now()) FROM es_subscriptions WHERE name = 'exact'});
sql(qq{SELECT es_fetch('exact', '$_', 1)}) for 'x', 'y', 'z', 'x', 'y', 'z';
is(sql(q{SELECT string_agg(n::text, ' ' ORDER BY n DESC) FROM
	(SELECT count(*) AS n FROM es_subscriptions WHERE name = 'exact' GROUP BY consumer) c}),
	'6 5 5', 'three consumers share 16 partitions evenly');

# A consumer that waits is told at once, and takes no lock meanwhile.
sql(q{SELECT es_create_subscription('waiting', ARRAY['news'], partitions => 4)});
my $in = '';
my ($out, $err) = ('', '');
my $waiter = IPC::Run::start(
	[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c',
		q{SELECT stream FROM es_fetch('waiting', 'w', wait => '10 min')} ],
	'<', \$in, '>', \$out, '2>', \$err);
$node->poll_query_until('postgres', q{SELECT true FROM pg_stat_activity
	WHERE query LIKE '%es_fetch(''waiting''%' AND wait_event_type = 'Extension'});
is(sql(q{SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
		 WHERE a.query LIKE '%es_fetch(''waiting''%' AND a.pid <> pg_backend_pid()
		   AND (l.locktype IN ('transactionid', 'tuple') OR l.mode NOT IN ('AccessShareLock', 'ExclusiveLock'))}),
	0, 'a consumer that waits holds no lock that another one needs');
is(sql(q{SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%es_fetch(''waiting''%'
		 AND backend_xid IS NOT NULL}), 0, 'nor a transaction id');
sql(q{SELECT es_append('news-1', 'NEWS')});
$waiter->finish;
is($out, "news-1\n", 'it is woken by what it waits for');

# The client of a consumer that waits dies: nothing is handed out to it.
$waiter = IPC::Run::start(
	[ 'psql', '-XAtq', '-d', $node->connstr('postgres'), '-c', q{SELECT es_ack('waiting', 'w', (SELECT max("position") FROM es.event WHERE category = 'news'))}, '-c',
		q{SELECT stream FROM es_fetch('waiting', 'w', wait => '10 min')} ],
	'<', \$in, '>', \$out, '2>', \$err);
my $find = q{FROM pg_stat_activity WHERE query LIKE '%es_fetch(''waiting''%'
	AND pid <> pg_backend_pid() AND state = 'active'};
$node->poll_query_until('postgres', "SELECT wait_event_type = 'Extension' $find");
$waiter->signal('KILL');
eval { $waiter->finish };
$node->poll_query_until('postgres', "SELECT NOT EXISTS (SELECT $find)");
sql(q{SELECT es_append('news-1', 'NEWS')});
is(sql(q{SELECT max(deliveries) FROM es_fetch('waiting', 'w')}), 1,
	'a consumer that dies while it waits is handed out nothing');

# A copy hands out nothing before it is activated.
$node->stop;
$node->start;
sql('CREATE DATABASE copy TEMPLATE postgres');
my ($status, $stdout, $stderr) = $node->psql('copy', q{SELECT * FROM es_fetch('waiting', 'w')});
like($stderr, qr/this database is a copy/, 'a copy hands out nothing before es_activate()');

$node->stop;
done_testing();
