#
# The log is append-only for what does not come through SQL, too: logical apply,
# and a drop that races with an append.  At the end, the list of all attacks with
# the answer each got: those by SQL are the ones of test/sql/append_only.sql.
#
use strict;
use warnings;
use EsClient;
use EsNode;
use EsTable;
use IPC::Run;
use PostgreSQL::Test::Utils;
use Test::More;

my @attacks = ([ 'log', 'attack', 'by a superuser', q{by the log's owner} ]);
my $event = q{position, version, recorded_at, stream, category, type, payload, metadata};

# A publisher that is no event log, so that it can send what it likes.
my $forger = PostgreSQL::Test::Cluster->new('forger');
$forger->init(allows_streaming => 'logical');
$forger->start;
$forger->safe_psql('postgres', q{
	CREATE SCHEMA es;
	CREATE TABLE es.event (position bigint PRIMARY KEY, version bigint, recorded_at timestamptz,
		stream text, category text, type text, payload jsonb, metadata jsonb);
	ALTER TABLE es.event REPLICA IDENTITY FULL;
	CREATE PUBLICATION forged FOR TABLE es.event});

my $node = EsNode->create('log');
my $connection = $forger->connstr . ' dbname=postgres';

# What the server's log says of an attack, as the tables of append_only.sql do.
sub answer
{
	my ($offset) = @_;
	my ($error) = slurp_file($node->logfile, $offset) =~ /ERROR: +(.*is refused: the log is append-only)/;

	return '55000 ' . $error =~ s/: the log is append-only/ */r;
}

sub short
{
	my ($text, $width) = @_;

	return length($text) > $width ? substr($text, 0, $width - 3) . '...' : $text;
}

# Let the publisher send a change to a log in use, and see how apply fares.
sub refused
{
	my ($change, $operation, $what) = @_;
	my $before = $node->safe_psql('postgres', "SELECT $event FROM es.event ORDER BY position");
	my $offset = $node->log_end;

	$node->safe_psql('postgres', qq{
		CREATE SUBSCRIPTION forged CONNECTION '$connection' PUBLICATION forged WITH (copy_data = false)});
	$forger->safe_psql('postgres', $change);
	ok($node->wait_for_log(qr/ERROR: .*$operation on "es\.event" is refused: the log is append-only/, $offset),
		"logical apply of $what to a log in use is refused");
	push @attacks, [ 'in use', "logical apply of $what", answer($offset), '' ];
	$node->safe_psql('postgres', 'DROP SUBSCRIPTION forged');
	is($node->safe_psql('postgres', "SELECT $event FROM es.event ORDER BY position"),
		$before, "... and changes nothing");
	return;
}

# As long as the log is not in use, it takes rows as a restore or a replica of
# it would.
$forger->safe_psql('postgres', q{
	INSERT INTO es.event VALUES (1, 1, now(), 'a-1', 'a', 'A', '{}', NULL)});
$node->safe_psql('postgres', qq{
	CREATE SUBSCRIPTION forged CONNECTION '$connection' PUBLICATION forged});
$node->wait_for_subscription_sync($forger, 'forged');
$forger->safe_psql('postgres', q{
	INSERT INTO es.event VALUES (2, 2, now(), 'a-1', 'a', 'B', '{}', NULL)});
$forger->wait_for_catchup('forged');
is($node->safe_psql('postgres', "SELECT string_agg(type, ',' ORDER BY position) FROM es.event"),
	'A,B', 'a log that was never used can be fed by logical replication');
$node->safe_psql('postgres', 'DROP SUBSCRIPTION forged');

# From the first append on it does not.
$node->safe_psql('postgres', q{
	SELECT setval('es.event_position', 64);
	SELECT es_append('a-1', 'C')});
refused(q{INSERT INTO es.event VALUES (3, 4, now(), 'a-1', 'a', 'FORGED', '{}', NULL)}, 'INSERT', 'INSERT');
refused(q{UPDATE es.event SET type = 'FORGED' WHERE position = 1}, 'UPDATE', 'UPDATE');
refused(q{DELETE FROM es.event WHERE position = 2}, 'DELETE', 'DELETE');
refused(q{TRUNCATE es.event}, 'TRUNCATE', 'TRUNCATE');

my $offset = $node->log_end;
$forger->safe_psql('postgres', q{
	INSERT INTO es.event VALUES (70, 9, now(), 'a-9', 'a', 'FORGED', '{}', NULL)});
$node->safe_psql('postgres', qq{
	CREATE SUBSCRIPTION forged CONNECTION '$connection' PUBLICATION forged});
ok($node->wait_for_log(qr/ERROR: .*INSERT on "es\.event" is refused/, $offset),
	'the initial copy of a subscription into a log in use is refused');
push @attacks, [ 'in use', 'the initial copy of a subscription', answer($offset), '' ];
$node->safe_psql('postgres', 'DROP SUBSCRIPTION forged');
is($node->safe_psql('postgres', q{SELECT string_agg(type, ',' ORDER BY position) FROM es.event}),
	'A,B,C', '... and changes nothing');

# DROP looks at a log that seems empty, and waits for an appender in it.
$node->safe_psql('postgres', 'CREATE DATABASE race');
$node->safe_psql('race', 'CREATE EXTENSION es');
my $appender = EsClient->connect($node, 'race');
$appender->begin_work;
$appender->do(q{SELECT es_append('a-1', 'A')});
my ($stdout, $stderr) = ('', '');
my $drop = IPC::Run::start(
	[ 'psql', '-XqAt', '-d', $node->connstr('race'), '-c', 'DROP EXTENSION es' ],
	'>', \$stdout, '2>', \$stderr);
$node->poll_query_until('race', q{
	SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'})
  or die 'DROP EXTENSION does not wait';
$appender->commit;
$appender->disconnect;
$drop->finish;
like($stderr, qr/DROP is refused: the log is append-only/,
	'DROP EXTENSION that had to wait for the first append is refused');
is($node->safe_psql('race', 'SELECT count(*) FROM es.event'), '1', '... and the event is there');
push @attacks, [ 'in use', 'DROP EXTENSION that waited for the first append',
	$stderr =~ /ERROR: +DROP is refused/ ? '55000 DROP is refused *' : $stderr, '' ];

# All that can be tried by SQL.
$node->safe_psql('postgres', 'CREATE DATABASE contrib_regression');
my @by_sql;
my $log = 'empty';
foreach my $line (split /\n/, $node->safe_psql('contrib_regression', slurp_file('test/sql/append_only.sql')))
{
	# What is appended there tells so.
	$log = 'in use' if $line eq 't';
	my ($attack, $superuser, $owner) = $line =~ /^(.*)\|(.*)\|(.*)$/ or next;
	push @by_sql, [ $log, short($attack, 76), short($superuser, 50),
		$owner eq $superuser ? 'the same' : short($owner, 50) ];
}
cmp_ok(scalar(@by_sql), '>', 90, 'every attack by SQL got an answer');
report('doc/security.md', $attacks[0], @by_sql, @attacks[ 1 .. $#attacks ]);

$node->stop;
$forger->stop;
done_testing();
