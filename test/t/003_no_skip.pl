# 003_no_skip.pl
#	  Whoever follows the log sees every committed event once and in order,
#	  whatever the writers do; and only who appends can make a follower wait.

use strict;
use warnings;

use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;

# Seconds of load.
my $duration = 15;
my $writers = 24;

my $node = EsNode->create('noskip', conf => q{
	log_statement = none
	log_min_error_statement = panic
	log_min_messages = fatal
	deadlock_timeout = 50ms
	max_connections = 60
	max_prepared_transactions = 2});

$node->safe_psql('postgres', q{
	CREATE TABLE seen (arrival bigint GENERATED ALWAYS AS IDENTITY, position bigint);
	SELECT es_create_projection('seen', $$
		INSERT INTO seen (position) SELECT position FROM es_batch ORDER BY position $$,
		batch_size => 700);

	CREATE TABLE stream_state (stream text PRIMARY KEY, version bigint, events bigint,
		digest numeric);
	SELECT es_create_projection('state', $$
		INSERT INTO stream_state AS s
		SELECT stream, max(version), count(*), sum(position * version) FROM es_batch
		 GROUP BY stream
		ON CONFLICT (stream) DO UPDATE SET version = excluded.version,
			events = s.events + excluded.events, digest = s.digest + excluded.digest $$)});

#
# The writers: what commits, what rolls back, in whole and in part, and what
# takes its time, so that positions are not committed in their order.
#
my %scripts = (
	single => [ 4, q{SELECT es_append('a-' || :stream, 'SINGLE');} ],
	several => [ 3, q{
BEGIN;
SELECT es_append('a-' || :stream, 'SEVERAL');
SELECT es_append('b-' || :stream, 'SEVERAL');
SELECT es_append_batch('b-' || :other, '[{"type": "SEVERAL"}, {"type": "SEVERAL"}, {"type": "SEVERAL"}]');
COMMIT;} ],
	slow => [ 3, q{
BEGIN;
SELECT es_append('slow-' || :client_id, 'SLOW');
\sleep :pause ms
SELECT es_append('slow-' || :client_id, 'SLOW');
COMMIT;} ],
	rollback => [ 3, q{
BEGIN;
SELECT es_append('a-' || :stream, 'NEVER');
SELECT es_append_batch('b-' || :other, '[{"type": "NEVER"}, {"type": "NEVER"}]');
\sleep :pause ms
ROLLBACK;} ],
	savepoint => [ 3, q{
BEGIN;
SAVEPOINT one;
SELECT es_append('a-' || :stream, 'NEVER');
ROLLBACK TO one;
SELECT es_append('b-' || :other, 'AFTER');
SAVEPOINT two;
SELECT es_append('b-' || :other, 'NEVER');
ROLLBACK TO two;
RELEASE two;
COMMIT;} ],
	error => [ 1, q{
DO $$
BEGIN
	PERFORM es_append('c-' || (random() * 20)::int, 'BEFORE');
	BEGIN
		PERFORM es_append('c-' || (random() * 20)::int, 'NEVER');
		PERFORM 1 / 0;
	EXCEPTION WHEN division_by_zero THEN
		NULL;
	END;
END
$$;} ]);

# Two clients that remember the last position they got, one in each kind of
# transaction.  In REPEATABLE READ the settled position is that of es.settled.
my $follow = q{
WITH news AS (SELECT position FROM es_read(:last, 5000)),
	kept AS (INSERT INTO FOLLOWED (position) SELECT position FROM news ORDER BY position)
SELECT coalesce(max(position), :last) AS last FROM news \gset
};
my %followers = (
	committed => "$follow;\nINSERT INTO settled_seen (position) VALUES (es_settled());\n",
	repeatable => "BEGIN ISOLATION LEVEL REPEATABLE READ;\n$follow;\nCOMMIT;\n");

$node->safe_psql('postgres', q{
	CREATE TABLE settled_seen (arrival bigint GENERATED ALWAYS AS IDENTITY, position bigint)});
for my $name (keys %followers)
{
	$followers{$name} =~ s/FOLLOWED/followed_$name/;
	$node->safe_psql('postgres', qq{
		CREATE TABLE followed_$name (arrival bigint GENERATED ALWAYS AS IDENTITY,
			position bigint)});
}

sub start_pgbench
{
	my (@arguments) = @_;
	my %run = (out => '', err => '');

	$run{process} = IPC::Run::start([ 'pgbench', '-n', '-T', $duration, @arguments,
			$node->connstr('postgres') ], '>', \$run{out}, '2>', \$run{err});
	return \%run;
}

# Write a script for pgbench and return its name.
sub script_file
{
	my ($name, $text) = @_;
	my $file = $node->basedir . "/$name.sql";

	append_to_file($file, $text);
	return $file;
}

my @writers = map {
	my ($weight, $text) = @{ $scripts{$_} };

	('-f', script_file($_, "\\set stream random(1, 40)\n\\set other random(1, 400)\n"
		  . "\\set pause random(1, 25)\n$text\n") . "\@$weight")
} sort keys %scripts;
my $load = start_pgbench('-c', $writers, '-j', 2, '--max-tries', 1000, @writers);
my @following = map {
	start_pgbench('-D', 'last=0', '-f',
		script_file($_, "$followers{$_}\n\\sleep 3 ms\n"))
} keys %followers;

ok($load->{process}->finish, "$writers writers run for $duration s") or diag($load->{err});
my ($transactions) = $load->{out} =~ /transactions actually processed: (\d+)/;
for my $f (@following)
{
	ok($f->{process}->finish && $f->{err} !~ /error/, 'a client follows them')
	  or diag($f->{err});
}

ok($node->wait_caught_up('postgres', $_), "projection $_ catches up")
  for ('seen', 'state');
my $count = $node->safe_psql('postgres', 'SELECT count(*) FROM es.event');
diag("$transactions transactions with $count events");

cmp_ok($count, '>', 1000, 'there was something to skip');
is($node->safe_psql('postgres', q{SELECT count(*) FROM es.event WHERE type = 'NEVER'}),
	0, 'what was rolled back is not in the log');
is($node->safe_psql('postgres', q{
		SELECT count(*) FROM (
			SELECT position, lag(position) OVER (ORDER BY arrival) AS before FROM settled_seen) s
		 WHERE position < before}),
	0, 'the settled position never falls');

# Let the followers go on from their last position, once all is settled.
$node->poll_query_until('postgres',
	'SELECT position >= (SELECT max(position) FROM es.event) FROM es.settled')
  or die 'the settled position is not written down';
for my $name (keys %followers)
{
	$node->safe_psql('postgres', qq{
		BEGIN ISOLATION LEVEL REPEATABLE READ;
		INSERT INTO followed_$name (position)
		SELECT position FROM es_read((SELECT max(position) FROM followed_$name), NULL);
		COMMIT});
}
my %readers = (
	seen => 'a projection',
	followed_committed => 'a client that follows es_read()',
	followed_repeatable => 'a client that follows es_read() in REPEATABLE READ');
for my $table (sort keys %readers)
{
	my $who = $readers{$table};

	is($node->safe_psql('postgres', qq{
			SELECT count(*) FROM $table s FULL JOIN es.event e USING (position)
			 WHERE s.position IS NULL OR e.position IS NULL}),
		0, "$who gets exactly the events that were committed");
	is($node->safe_psql('postgres', "SELECT count(*) - count(DISTINCT position) FROM $table"),
		0, "$who gets each event once");
	is($node->safe_psql('postgres', qq{
			SELECT count(*) FROM (
				SELECT position, lag(position) OVER (ORDER BY arrival) AS before FROM $table) s
			 WHERE position <= before}),
		0, "$who gets the events in the order of the log");
}
is($node->safe_psql('postgres', q{
		SELECT count(*) FROM stream_state s
		  FULL JOIN (SELECT stream, max(version) AS version, count(*) AS events,
						sum(position * version) AS digest FROM es.event GROUP BY stream) e
			USING (stream, version, events, digest)
		 WHERE s.stream IS NULL OR e.stream IS NULL}),
	0, 'a second projection agrees with the log, stream by stream');
is($node->safe_psql('postgres', q{
		SELECT count(*) FROM (
			SELECT version, row_number() OVER (PARTITION BY stream ORDER BY position) AS n
			  FROM es.event) e
		 WHERE version <> n}),
	0, 'the versions of each stream are 1 to n, and rise with the positions');

#
# Who may keep a follower waiting
#

# Append one event, and say whether the projection soon has it.
sub is_applied
{
	my ($timeout) = @_;

	return $node->safe_psql('postgres', qq{
		SELECT position FROM es_append('quiet-1', 'QUIET') \\gset
		SELECT es_wait('seen', :position, '$timeout')}) eq 't';
}

$node->safe_psql('postgres', 'CREATE DATABASE other');
$node->safe_psql('other', q{
	CREATE EXTENSION es;
	CREATE TABLE seen (position bigint);
	SELECT es_create_projection('seen', 'INSERT INTO seen SELECT position FROM es_batch')});

for my $database ('postgres', 'other')
{
	my $where = $database eq 'postgres' ? 'this' : 'another';
	my $session = $node->background_psql($database);

	$session->query_safe('BEGIN; SELECT pg_current_xact_id()');
	ok(is_applied('60 s'), "a transaction with an xid in $where database delays nothing");
	$session->query_safe('ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
	ok(is_applied('60 s'), "a snapshot in $where database delays nothing");
	$session->query_safe('ROLLBACK');
	$session->quit;

	$node->safe_psql($database,
		q{BEGIN; CREATE TABLE prepared (); PREPARE TRANSACTION 'p'});
	ok(is_applied('60 s'), "a prepared transaction in $where database delays nothing");
	$node->safe_psql($database, q{ROLLBACK PREPARED 'p'});
}

# While a snapshot is held, every version of a checkpoint stays.  To find the
# newest one must not take longer with each batch.
my $reader = $node->background_psql('postgres');
my $moves = q{SELECT n_tup_upd FROM pg_stat_all_tables WHERE relid = 'es.checkpoint'::regclass};
my @blocks;
$node->safe_psql('postgres', q{
	SELECT es_create_projection('one_by_one', 'SELECT FROM es_batch', batch_size => 1,
		start_after => (SELECT max(position) FROM es.event))});
$reader->query_safe('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1');
for my $third (0 .. 3)
{
	my $before = $node->safe_psql('postgres', $moves);

	$node->safe_psql('postgres', q{
		SELECT es_append_batch('quiet-1', (SELECT jsonb_agg('{"type": "QUIET"}'::jsonb)
			FROM generate_series(1, 2000)))});
	# Not by looking at the checkpoint, which would count.
	$node->poll_query_until('postgres', "SELECT ($moves) >= $before + 2000")
	  or die 'one_by_one is behind';
	push @blocks, $node->safe_psql('postgres', q{
		SELECT heap_blks_hit FROM pg_statio_all_tables WHERE relid = 'es.checkpoint'::regclass});
}
cmp_ok($blocks[3] - $blocks[2], '<', 1.5 * ($blocks[1] - $blocks[0]),
	'a snapshot that is held for long does not make a projection slower and slower');
$reader->query_safe('COMMIT');
$reader->quit;
$node->safe_psql('postgres', q{SELECT es_drop_projection('one_by_one')});

my $appender = $node->background_psql('other');
$appender->query_safe(q{BEGIN; SELECT es_append('long-1', 'LONG')});
ok(is_applied('60 s'), 'an appender in another database delays nothing');
is($node->safe_psql('postgres', 'SELECT count(*) FROM es_stat_append'), 0,
	'es_stat_append shows the appenders of its own database alone');
$appender->quit;

$appender = $node->background_psql('postgres');
my $pid = $appender->query_safe('SELECT pg_backend_pid()');
my $first = $appender->query_safe(q{
	BEGIN;
	SELECT position FROM es_append('long-1', 'LONG')});
my $later = $node->background_psql('postgres');
$later->query_safe(q{BEGIN; SELECT es_append('long-2', 'LONG')});
ok(!is_applied('200 ms'), 'a transaction that has appended holds its followers');
is($node->safe_psql('postgres', q{
		SELECT pid, first_position, state FROM es_stat_append LIMIT 1}),
	"$pid|$first|idle in transaction",
	'es_stat_append names who holds, the oldest first');
is($node->safe_psql('postgres', 'SELECT es_settled()'), $first - 1,
	'the settled position stands before what is in flight');
is($node->safe_psql('postgres', 'SELECT lag_events > 0 FROM es_projections WHERE name = $$seen$$'),
	'f', 'what cannot be read yet is no lag of a projection');
$later->query_safe('COMMIT');
ok(!is_applied('200 ms'), 'a later one that commits frees nobody');
$appender->query_safe('ROLLBACK');
is($node->safe_psql('postgres', q{
		SELECT es_wait('seen', (SELECT max(position) FROM es.event), '60 s')}),
	't', 'its end, a rollback too, frees all at once');
is($node->safe_psql('postgres', 'SELECT count(*) FROM es_stat_append'), 0,
	'who has ended is in nobody\'s way');

$appender->query_safe(q{
	BEGIN; SAVEPOINT s; SELECT es_append('long-1', 'LONG'); ROLLBACK TO s});
ok(!is_applied('100 ms'), 'an append that was rolled back to a savepoint holds too');
$node->safe_psql('postgres', "SELECT pg_terminate_backend($pid)");
is($node->safe_psql('postgres', q{
		SELECT es_wait('seen', (SELECT max(position) FROM es.event), '60 s')}),
	't', 'an appender that is terminated frees all');
is($node->safe_psql('postgres', q{
		SELECT count(*) FROM seen s FULL JOIN es.event e USING (position)
		 WHERE s.position IS NULL OR e.position IS NULL}),
	0, 'and still nothing was skipped');
$appender->{run}->kill_kill;
$later->quit;

$node->stop;

done_testing();
