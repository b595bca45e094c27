# 041_rebuild.pl
#	  A rebuild is noticed by nobody: sessions append, read through a view and
#	  refer to rows by a foreign key all the while, other projections go on, and
#	  a crash in the middle costs nothing.
#
#	ES_EVENTS	events in the log when the rebuild begins (default 1000000)

use strict;
use warnings;

use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

my $events = $ENV{ES_EVENTS} // 1_000_000;
my $accounts = 5000;
my $rounds = int($events / $accounts / 25) || 1;

my $node = EsNode->create('rebuild', conf => q{
	log_min_error_statement = panic
	log_lock_waits = on
	deadlock_timeout = 50ms
	shared_buffers = 256MB
	wal_init_zero = off
	max_wal_size = 4GB
	es.rebuild_lock_timeout = 2000});

$node->safe_psql('postgres', q{
	CREATE TABLE account (stream text PRIMARY KEY, amount bigint NOT NULL, n int NOT NULL);
	CREATE VIEW rich AS SELECT stream, amount FROM account WHERE amount > 0;
	CREATE TABLE remark (stream text NOT NULL REFERENCES account, at timestamptz DEFAULT now());
	CREATE VIEW scratch AS
		SELECT stream, sum((payload->>'amount')::int)::bigint AS amount, count(*)::int AS n
		  FROM es.event WHERE category = 'account' GROUP BY 1;
	SELECT es_create_projection('account', $$
		INSERT INTO account AS a
		SELECT stream, sum((payload->>'amount')::int), count(*) FROM es_batch GROUP BY 1
		ON CONFLICT (stream) DO UPDATE SET amount = a.amount + excluded.amount, n = a.n + excluded.n
		$$, categories => '{account}', tables => '{account}');
	CREATE TABLE quick (one bool PRIMARY KEY DEFAULT true, n bigint);
	SELECT es_create_projection('quick', $$
		INSERT INTO quick AS q (n) SELECT count(*) FROM es_batch
		ON CONFLICT (one) DO UPDATE SET n = q.n + excluded.n $$, categories => '{ping}')});

# The log: each account has events in all parts of it.
$node->safe_psql('postgres', qq{
	DO \$\$
	DECLARE
		events jsonb := (SELECT jsonb_agg(jsonb_build_object('type', 'T', 'payload', jsonb_build_object('amount', j)))
						 FROM generate_series(1, 25) j);
	BEGIN
		FOR round IN 1 .. $rounds LOOP
			PERFORM es_append_batch('account-' || i, events) FROM generate_series(0, $accounts - 1) i;
			COMMIT;
		END LOOP;
	END \$\$});
diag($node->safe_psql('postgres', 'SELECT count(*) FROM es.event') . ' events');
my $begun = time;
ok($node->wait_caught_up('postgres', 'account'), 'the projection catches up');
note(sprintf('caught up in %.1f s', time - $begun));

my %scripts = (
	append => qq{
\\set account random(0, $accounts - 1)
SELECT es_append('account-' || :account, 'T', '{"amount": 1}');
},
	view => qq{
\\set account random(0, $accounts - 1)
SELECT amount FROM rich WHERE stream = 'account-' || :account;
SELECT count(*) FROM rich WHERE amount > 1000000000;
},
	refer => qq{
\\set account random(0, $accounts - 1)
INSERT INTO remark VALUES ('account-' || :account);
},
	ping => q{
SELECT position AS at FROM es_append('ping-' || :client_id, 'PING') \gset
SELECT es_wait('quick', :at, '1 min');
},
	count => q{
SELECT sum(i) FROM generate_series(1, 1000000) i;
});

sub start
{
	my ($name, @arguments) = @_;
	my %run = (name => $name, out => '', err => '', log => $node->basedir . "/$name");
	my $file = $node->basedir . "/$name.sql";

	unlink $file, glob("$run{log}.*");
	append_to_file($file, $scripts{$name});
	$run{process} = IPC::Run::start([ 'pgbench', '-n', '-T', 3600, '-f', $file, '-l',
			'--log-prefix', $run{log}, @arguments,
			$node->connstr('postgres') . " application_name=$name" ],
		'>', \$run{out}, '2>', \$run{err});
	return \%run;
}

# Latencies in milliseconds of what a pgbench has done, sorted, and its errors.
sub finish
{
	my ($run) = @_;
	my @ms;

	$run->{process}->signal('TERM');
	eval { $run->{process}->finish };
	foreach my $file (glob("$run->{log}.*"))
	{
		push @ms, map { (split)[2] / 1000 } split /\n/, slurp_file($file);
	}
	@ms = sort { $a <=> $b } @ms;
	return (\@ms, join "\n", grep { /error|abort/i } split /\n/, $run->{err});
}

sub show
{
	my ($what, $ms) = @_;

	diag(sprintf('%-35s %5d, median %6.2f ms, p99 %7.2f ms, longest %7.2f ms', $what,
		scalar @$ms, $ms->[ @$ms / 2 ] // 0, $ms->[ @$ms * 0.99 ] // 0, $ms->[-1] // 0));
	return;
}

# Sessions that append, read through a view, refer by a foreign key, and follow
# another projection.
sub start_all
{
	return (start('append', '-c', 4, '-R', 200), start('view', '-c', 4, '-R', 100),
		start('refer', '-c', 2, '-R', 50), start('ping', '-c', 4, '-R', 50));
}

sub rebuild_is_done
{
	return $node->safe_psql('postgres', q{
		SELECT count(*) = 0 FROM es.rebuild WHERE finished_at IS NULL}) eq 't';
}

# How quickly all that goes while nothing is rebuilt; and while something else
# needs a processor, since on a small machine everybody feels that.
foreach my $beside ('nothing', 'a query that counts')
{
	my @load = start_all();

	push @load, start('count', '-c', 1) if $beside ne 'nothing';
	sleep(4);
	foreach my $run (@load)
	{
		my ($ms, $errors) = finish($run);

		is($errors, '', "$run->{name}: no error beside $beside");
		show("$run->{name} beside $beside:", $ms) if $run->{name} ne 'count';
	}
}

# And while one is.
my $log = $node->log_end;
my @load = start_all();
sleep(0.3);
$node->safe_psql('postgres', q{
	UPDATE account SET amount = 0, n = 0 WHERE stream LIKE '%7';
	SELECT es_rebuild('account')});
my $deadline = time + $EsNode::patience;
my $long_enough = time + 4;
while (time < $deadline)
{
	sleep(0.1);
	next if !rebuild_is_done();
	last if time > $long_enough;
	$node->safe_psql('postgres', q{SELECT es_rebuild('account')});
}
ok(rebuild_is_done(), 'the rebuild comes to its end under load');
foreach my $run (@load)
{
	my ($ms, $errors) = finish($run);

	is($errors, '', "$run->{name}: no error while the table is rebuilt");
	show("$run->{name} beside a rebuild:", $ms);
}
ok(!$node->log_has(qr/ view LOG:  process \d+ still waiting for/, $log),
	'nobody who reads waits for a lock');
diag('rebuild: ' . $node->safe_psql('postgres', q{
	SELECT events || ' events, ' || events_per_second || '/s, merged in ' || merge_time ||
		   ', rows ' || rows_inserted || ' inserted, ' || rows_updated || ' updated, ' || rows_deleted || ' deleted'
	  FROM es_stat_rebuild LIMIT 1}));

sub is_from_scratch
{
	my ($name) = @_;

	ok($node->wait_caught_up('postgres', 'account'), 'the projection catches up');
	is($node->safe_psql('postgres', q{
			SELECT count(*) FROM ((TABLE account EXCEPT ALL TABLE scratch)
				UNION ALL (TABLE scratch EXCEPT ALL TABLE account)) d}), '0', $name);
	return;
}
is_from_scratch('the rebuilt table is what the query makes of the whole log');

#
# Nobody who only reads waits for the end of a rebuild, even one who stays in a
# transaction with a snapshot of its own.
#
my $reader = $node->background_psql('postgres');
$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ');
my $before = $reader->query_safe('SELECT sum(n) FROM rich JOIN account USING (stream)');
$node->safe_psql('postgres', q{
	DELETE FROM remark;
	UPDATE account SET n = 0;
	DELETE FROM account WHERE stream LIKE '%3';
	SELECT es_rebuild('account')});
$deadline = time + $EsNode::patience;
sleep(0.1) while !rebuild_is_done() && time < $deadline;
ok(rebuild_is_done(), 'a rebuild does not wait for who reads');
is($reader->query_safe('SELECT sum(n) FROM rich JOIN account USING (stream)'), $before,
	'who reads sees, to the end of its transaction, what it saw');
$reader->query_safe('COMMIT');
$reader->quit;
is_from_scratch('the table is mended');

#
# Who holds a row makes the end of the rebuild wait, but never longer than
# es.rebuild_lock_timeout, in which nothing else of the projection waits.
#
$node->safe_psql('postgres', q{UPDATE account SET n = -1 WHERE stream = 'account-3'});
my $writer = $node->background_psql('postgres');
$writer->query_safe('BEGIN');
$writer->query_safe(q{UPDATE account SET n = -2 WHERE stream = 'account-3'});
$node->safe_psql('postgres', q{SELECT es_rebuild('account')});
ok($node->poll_query_until('postgres', q{
		SELECT last_error LIKE '%lock timeout%' FROM es_stat_rebuild ORDER BY rebuild DESC LIMIT 1}),
	'the rebuild gives way to a lock');
$node->safe_psql('postgres', q{SELECT es_append('account-4', 'T', '{"amount": 1}')});
ok($node->wait_caught_up('postgres', 'account'), 'and lets the projection go on');
$writer->query_safe('COMMIT');
$writer->quit;
$node->safe_psql('postgres', q{SELECT es_resume('account')});
$deadline = time + $EsNode::patience;
sleep(0.1) while !rebuild_is_done() && time < $deadline;
is_from_scratch('the rebuild comes to its end later');

#
# A crash at any moment: the table stays, and the rebuild goes on where it was.
#
$node->safe_psql('postgres', q{ALTER SYSTEM SET es.max_batch_size = 20000});
$node->safe_psql('postgres', q{ALTER SYSTEM SET es.batch_size = 1000});
$node->reload;
$node->safe_psql('postgres', q{UPDATE account SET amount = -1; SELECT es_rebuild('account')});
ok($node->poll_query_until('postgres', q{
		SELECT position > 0 FROM es.checkpoint WHERE rebuild > 0}), 'the rebuild has begun');
for my $i (1 .. 3)
{
	my $position = $node->safe_psql('postgres', q{
		SELECT coalesce(min(position), 0) FROM es.checkpoint WHERE rebuild > 0});

	$node->stop('immediate');
	$node->start;
	my ($after, $served, $active) = split /\|/, $node->safe_psql('postgres', q{
		SELECT (SELECT coalesce(min(position), 0) FROM es.checkpoint WHERE rebuild > 0),
			   (SELECT count(*) FROM account),
			   (SELECT count(*) FROM es.rebuild WHERE finished_at IS NULL)});
	ok($after > 0 || !$active, "the rebuild goes on where it was, not at the beginning ($i)");
	is($served, $accounts, "the table is there ($i)");
	sleep(0.3);
}
$deadline = time + $EsNode::patience;
sleep(0.1) while !rebuild_is_done() && time < $deadline;
ok(rebuild_is_done(), 'the rebuild comes to its end');
is_from_scratch('after crashes, too, it is what the query makes of the whole log');
is($node->safe_psql('postgres', q{SELECT nspname FROM pg_namespace WHERE nspname LIKE 'es\_rebuild%'}), '',
	'no shadow is left');

$node->stop;
done_testing();
