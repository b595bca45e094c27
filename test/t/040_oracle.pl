# 040_oracle.pl
#	  Whatever happens, each read model is what its query makes of the whole
#	  log: under concurrent load, crashes, pauses, rebuilds, and changes of
#	  mode, partitions and batches at random moments.
#
#	ES_SECONDS	how long (default 60)
#	ES_SEED		what happens (default: another one each time; it is printed)

use strict;
use warnings;

use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time sleep);

my $seconds = $ENV{ES_SECONDS} // 60;
my $seed = $ENV{ES_SEED} // int(time * 1000) % 1_000_000;

srand($seed);
diag("ES_SEED=$seed ES_SECONDS=$seconds");

my $node = EsNode->create('oracle', conf => q{
	log_min_error_statement = panic
	deadlock_timeout = 50ms
	es.batch_size = 200
	es.max_batch_size = 2000
	es.max_projectors = 4
	es.rebuild_lock_timeout = 500
	max_worker_processes = 20});

#
# The projections: their tables, their query, and what the read model is, from
# scratch.  Queries that do not leave their rows to one stream at a time take a
# lock, since partitions and appenders run side by side.
#
$node->safe_psql('postgres', q{
	CREATE FUNCTION chain(text, text) RETURNS text LANGUAGE sql IMMUTABLE
		AS 'SELECT md5($1 || $2)';
	CREATE AGGREGATE chained(text) (sfunc = chain, stype = text, initcond = '');

	CREATE SEQUENCE next_order;
	CREATE TABLE total (stream text PRIMARY KEY, n bigint, amount bigint, version bigint);
	CREATE VIEW total_scratch AS
		SELECT stream, count(*) AS n, sum((payload->>'total')::bigint)::bigint AS amount,
			   max(version) AS version
		  FROM es.event WHERE category = 'order' GROUP BY 1;

	CREATE TABLE owned (stream text PRIMARY KEY, customer text, amount bigint);
	CREATE TABLE lives (stream text PRIMARY KEY, region text);
	CREATE TABLE region (region text PRIMARY KEY, n bigint, amount bigint);
	CREATE VIEW region_scratch AS
		SELECT c.region, count(*) AS n, sum(o.amount)::bigint AS amount
		  FROM (SELECT payload->>'customer' AS customer, (payload->>'total')::bigint AS amount
				  FROM es.event WHERE type = 'PLACED') o
		  JOIN (SELECT DISTINCT ON (stream) stream, payload->>'region' AS region
				  FROM es.event WHERE category = 'customer' AND payload ? 'region'
				 ORDER BY stream, version DESC) c ON c.stream = o.customer
		 GROUP BY 1;

	CREATE TABLE alive (stream text PRIMARY KEY, name text, region text);
	CREATE VIEW alive_scratch AS
		SELECT stream,
			   (array_agg(payload->>'name' ORDER BY version DESC) FILTER (WHERE payload ? 'name'))[1] AS name,
			   (array_agg(payload->>'region' ORDER BY version DESC) FILTER (WHERE payload ? 'region'))[1] AS region
		  FROM (SELECT *, max(version) FILTER (WHERE type = 'LEFT') OVER (PARTITION BY stream) AS gone
				  FROM es.event WHERE category = 'customer') e
		 WHERE version > coalesce(gone, 0) GROUP BY stream;

	CREATE TABLE top (stream text PRIMARY KEY, amount bigint);
	CREATE VIEW top_scratch AS
		SELECT stream, (payload->>'total')::bigint AS amount FROM es.event
		 WHERE type = 'PLACED' ORDER BY 2 DESC, 1 LIMIT 10;

	CREATE TABLE story (stream text PRIMARY KEY, n int NOT NULL, digest text NOT NULL);
	CREATE FUNCTION tell(e es.event) RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		UPDATE story SET n = n + 1, digest = chain(digest, e.version || e.type)
		 WHERE stream = e.stream;
		IF NOT FOUND THEN
			INSERT INTO story VALUES (e.stream, 1, chain('', e.version || e.type));
		END IF;
	END $$;
	CREATE VIEW story_scratch AS
		SELECT stream, count(*)::int AS n, chained(version || type ORDER BY version) AS digest
		  FROM es.event WHERE category IN ('order', 'customer') GROUP BY 1;

	CREATE VIEW sent AS
		SELECT stream, count(*) AS n FROM es.event WHERE category = 'parcel' GROUP BY 1;
	CREATE VIEW sent_scratch AS
		SELECT 'parcel-' || position AS stream, 1::bigint AS n FROM es.event WHERE type = 'PAID';

	CREATE TABLE spent (customer text PRIMARY KEY, n bigint, amount bigint);
	CREATE VIEW spent_scratch AS
		SELECT payload->>'customer' AS customer, count(*) AS n,
			   sum((payload->>'total')::bigint)::bigint AS amount
		  FROM es.event WHERE type = 'PLACED' GROUP BY 1;

	CREATE TABLE doc (stream text PRIMARY KEY, doc jsonb);
	CREATE VIEW doc_scratch AS
		SELECT stream, jsonb_object_agg(kv.key, kv.value ORDER BY position) AS doc
		  FROM es.event, jsonb_each(payload || jsonb_build_object('last', type)) kv
		 WHERE category = 'order' GROUP BY 1;
});

my %projections = (
	total => {
		categories => 'order', tables => 'total', query => q{
			INSERT INTO total
			SELECT stream, count(*), sum((payload->>'total')::bigint), max(version)
			  FROM es_batch GROUP BY 1
			ON CONFLICT (stream) DO UPDATE SET n = total.n + excluded.n,
				amount = coalesce(total.amount + excluded.amount, total.amount, excluded.amount),
				version = excluded.version} },
	region => {
		categories => 'order,customer', tables => 'owned,lives,region', query => q{
			SELECT pg_advisory_xact_lock(1);
			INSERT INTO owned SELECT stream, payload->>'customer', (payload->>'total')::bigint
			  FROM es_batch WHERE type = 'PLACED';
			INSERT INTO lives SELECT DISTINCT ON (stream) stream, payload->>'region'
			  FROM es_batch WHERE payload ? 'region' AND category = 'customer'
			 ORDER BY stream, version DESC
			ON CONFLICT (stream) DO UPDATE SET region = excluded.region;
			DELETE FROM region;
			INSERT INTO region SELECT c.region, count(*), sum(o.amount)
			  FROM owned o JOIN lives c ON c.stream = o.customer GROUP BY 1} },
	alive => {
		categories => 'customer', tables => 'alive', query => q{
			DELETE FROM alive a USING es_batch b WHERE b.stream = a.stream AND b.type = 'LEFT';
			INSERT INTO alive
			SELECT stream,
				   (array_agg(payload->>'name' ORDER BY version DESC) FILTER (WHERE payload ? 'name'))[1],
				   (array_agg(payload->>'region' ORDER BY version DESC) FILTER (WHERE payload ? 'region'))[1]
			  FROM (SELECT *, max(version) FILTER (WHERE type = 'LEFT') OVER (PARTITION BY stream) AS gone
					  FROM es_batch) e
			 WHERE version > coalesce(gone, 0) GROUP BY stream
			ON CONFLICT (stream) DO UPDATE SET name = coalesce(excluded.name, alive.name),
				region = coalesce(excluded.region, alive.region)} },
	top => {
		categories => 'order', tables => 'top', query => q{
			SELECT pg_advisory_xact_lock(2);
			INSERT INTO top SELECT stream, (payload->>'total')::bigint FROM es_batch WHERE type = 'PLACED';
			DELETE FROM top WHERE stream NOT IN (
				SELECT stream FROM top ORDER BY amount DESC, stream LIMIT 10)} },
	story => {
		categories => 'order,customer', tables => 'story', query => q{
			SELECT tell(e) FROM es_batch e ORDER BY position} },
	sent => {
		categories => 'order', query => q{
			SELECT es_append('parcel-' || position, 'SENT') FROM es_batch WHERE type = 'PAID'} },
	# Rows of one key are written by several partitions, in no order: deadlocks.
	spent => {
		categories => 'order', tables => 'spent', partitions => 3, query => q{
			INSERT INTO spent
			SELECT payload->>'customer', count(*), sum((payload->>'total')::bigint)
			  FROM es_batch WHERE type = 'PLACED' GROUP BY 1
			ON CONFLICT (customer) DO UPDATE SET n = spent.n + excluded.n,
				amount = spent.amount + excluded.amount} },
	doc => {
		categories => 'order', tables => 'doc', query => q{
			INSERT INTO doc
			SELECT stream, jsonb_object_agg(kv.key, kv.value ORDER BY position)
			  FROM es_batch, jsonb_each(payload || jsonb_build_object('last', type)) kv
			 GROUP BY 1
			ON CONFLICT (stream) DO UPDATE SET doc = doc.doc || excluded.doc} });
my @names = sort keys %projections;

foreach my $name (@names)
{
	my $p = $projections{$name};
	my $tables = $p->{tables} ? "'{$p->{tables}}'" : 'NULL';
	my $partitions = $p->{partitions} // 1;

	$node->safe_psql('postgres', qq{
		SELECT es_create_projection('$name', \$\$$p->{query}\$\$, categories => '{$p->{categories}}',
			tables => $tables, partitions => $partitions)});
}

#
# The load: orders and customers, several in a transaction, some rolled back.
# One transaction, because pgbench repeats all of a script after a deadlock.
#
my $load = q{
\set customer random_zipfian(1, 60, 1.2)
\set other random(1, 60)
\set total random(1, 100000)
\set what random(1, 10)
\set region random(1, 5)
SELECT nextval('next_order') AS order \gset
BEGIN;
SELECT es_append('order-' || :order, 'PLACED', jsonb_build_object('customer', 'customer-' || :customer, 'total', :total));
\if :what = 1
ROLLBACK;
BEGIN;
\endif
SELECT es_append('customer-' || :customer, 'MOVED', jsonb_build_object('region', 'r' || :region));
\if :what < 4
SELECT es_append('customer-' || :other, 'NAMED', jsonb_build_object('name', 'n' || :total, 'region', 'r' || :region));
\endif
\if :what = 5
SELECT es_append('customer-' || :other, 'LEFT');
\endif
\if :what > 6
SELECT es_append_batch('order-' || :order, '[{"type": "PAID", "payload": {"by": "card"}}, {"type": "PACKED", "payload": {"boxes": 2}}]');
\endif
COMMIT;
};
my $script = $node->basedir . '/load.sql';
append_to_file($script, $load);

my @unexpected;

sub start_load
{
	my %run = (out => '', err => '');

	$run{process} = IPC::Run::start([ 'pgbench', '-n', '-T', 3600, '-c', 4, '-R', 120,
			'--max-tries', 1000, '--random-seed', int(rand(1_000_000)), '-f', $script,
			$node->connstr('postgres') ], '>', \$run{out}, '2>', \$run{err});
	return \%run;
}

sub stop_load
{
	my ($run) = @_;

	eval { $run->{process}->kill_kill };
	push @unexpected, "load: $1" while $run->{err} =~ /^(.*client \d+ aborted.*|.*ERROR.*)$/mg;
	return;
}

#
# What happens meanwhile.
#
my %happened;

# Conflicts with each other and with the load are part of it.
my $expected = join('|',
	'is being rebuilt',
	'is not being rebuilt',
	'while it is rebuilt',
	'deadlock detected',
	'canceling statement due to',
	'cannot be paused',
	'appenders would have to wait',
	'declares no tables',
	'terminating connection',
	'connection to server',
	'server closed',
	'cannot be called by a projection',
	'could not serialize');
$expected = qr/$expected/;

sub attempt
{
	my ($what, $sql) = @_;
	my ($status, $out, $err) = $node->psql('postgres', $sql, timeout => $EsNode::patience);

	$happened{$what}++;
	push @unexpected, "$what: $sql: $err" if $status != 0 && $err !~ $expected;
	return $status == 0;
}

sub any { return $_[ int(rand(@_)) ] }

my %actions = (
	pause => sub { attempt(pause => sprintf("SELECT es_pause('%s')", any(@names))) },
	resume => sub { attempt(resume => sprintf("SELECT es_resume('%s')", any(@names))) },
	rebuild => sub { attempt(rebuild => sprintf("SELECT es_rebuild('%s')", any(@names))) },
	cancel => sub { attempt(cancel => sprintf("SELECT es_cancel_rebuild('%s')", any(@names))) },
	sync => sub {
		attempt(sync => sprintf("SELECT es_alter_projection('%s', mode => 'sync')", any(@names)));
	},
	async => sub {
		attempt(async => sprintf("SELECT es_alter_projection('%s', mode => 'async')", any(@names)));
	},
	partitions => sub {
		attempt(partitions => sprintf("SELECT es_alter_projection('%s', partitions => %d)",
			any(@names), 1 + int(rand(4))));
	},
	batch_size => sub {
		my $name = any(@names);
		# Region reads everything for each batch, however small.
		my @sizes = (0, 7, 50, 1000, $name eq 'region' ? () : 1);

		attempt(batch_size => sprintf("SELECT es_alter_projection('%s', batch_size => %d)",
			$name, any(@sizes)));
	},
	kill => sub {
		attempt(kill => q{
			SELECT pg_terminate_backend(pid) FROM es_stat_workers
			 WHERE kind IN ('projector', 'scheduler') ORDER BY random() LIMIT 1});
	});
my @weighted = (('rebuild') x 6, ('resume') x 4, ('sync') x 3, ('async') x 4,
	qw(pause pause partitions partitions batch_size cancel kill));

my $begun = time;
my $run = start_load();
my @crashes = map { $begun + $seconds * $_ } (0.25 + rand(0.1), 0.6 + rand(0.1));

while (time < $begun + $seconds)
{
	if (@crashes && time > $crashes[0])
	{
		shift @crashes;
		$happened{crash}++;
		stop_load($run) if rand() < 0.5;
		$node->stop('immediate');
		$run->{err} = '';
		stop_load($run);
		$node->start;
		$run = start_load();
	}
	$actions{ any(@weighted) }->();
	sleep(0.05 + rand(0.25));
}
stop_load($run);
note(join ', ', map { "$_ $happened{$_}" } sort keys %happened);
is_deeply(\@unexpected, [], 'nothing fails but what stands in the way of something else');

#
# Let all come to rest.
#
foreach my $name (@names)
{
	$node->safe_psql('postgres', "SELECT es_resume('$name')");
}
my $deadline = time + $EsNode::patience;
my $rebuilding;
while (($rebuilding = $node->safe_psql('postgres',
			q{SELECT projection, phase, last_error FROM es_stat_rebuild
			   WHERE finished_at IS NULL AND projection <> 'sent'})) ne '' && time < $deadline)
{
	sleep(0.2);
}
is($rebuilding, '', 'every rebuild comes to its end');

# A saga answers what was there when it looked, and its answers are events.
for my $i (1 .. 2)
{
	is($node->safe_psql('postgres', qq{SELECT es_wait(es_settled(), '$EsNode::patience s')}), 't',
		"every projection catches up ($i)");
}
is($node->safe_psql('postgres', q{
		SELECT name, status, last_error FROM es_projections WHERE status <> 'caught up'}), '',
	'none has stopped');
is($node->safe_psql('postgres', 'SELECT count(*) FROM es.dead_letter'), '0',
	'there is no dead letter');

my $events = $node->safe_psql('postgres', 'SELECT count(*) FROM es.event');
my $done = $node->safe_psql('postgres', q{SELECT count(*) FROM es.rebuild WHERE phase = 'done'});
note("$events events, $done rebuilds done");
cmp_ok($events, '>', 100, 'there was load');
cmp_ok($done, '>', 0, 'there were rebuilds');

foreach my $name (@names)
{
	is($node->safe_psql('postgres', qq{
			(TABLE $name EXCEPT ALL TABLE ${name}_scratch)
			UNION ALL
			(TABLE ${name}_scratch EXCEPT ALL TABLE $name) LIMIT 20}), '',
		"$name is what its query makes of the whole log");
}
is($node->safe_psql('postgres', q{SELECT nspname FROM pg_namespace WHERE nspname LIKE 'es\_rebuild%'}), '',
	'no shadow is left');
ok(!$node->log_has(qr/PANIC|TRAP|was terminated by signal (?!9)|server process .* exited with exit code 2/),
	'no process crashed of itself');

$node->stop;
done_testing();
