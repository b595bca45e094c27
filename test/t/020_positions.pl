#
# What a position is worth: after a crash, and where the library is not loaded.
#
use strict;
use warnings;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;

#
# A commit with synchronous_commit off is seen before it is on disk.  (With full
# pages in the WAL it would be on disk soon.)
#
my $node = EsNode->create('crash', conf => q{
synchronous_commit = off
wal_writer_delay = 10s
full_page_writes = off
es.projector_synchronous_commit = off
});

sub append
{
	return $node->safe_psql('postgres',
		q{SELECT "position" FROM es_append('crash-1', 'APPENDED')});
}

foreach my $round (1 .. 3)
{
	my $seen;

	$node->safe_psql('postgres', 'CHECKPOINT');
	$seen = append() for 1 .. 5;
	is( $node->safe_psql('postgres', "SELECT es_settled() >= $seen"), 't',
		"round $round: readers see an event whose commit is not on disk");
	$node->stop('immediate');
	$node->start;
	cmp_ok(append(), '>', $seen,
		"round $round: no position that was seen is handed out again after a crash");
}

#
# What the scheduler had no time to write down before a restart it does after it,
# though nobody uses the log.
#
$node->append_conf('postgresql.conf', "es.notify_interval = 60s\n");
$node->reload;
my $last;
$last = append() for 1 .. 5;
$node->restart;
ok( $node->poll_query_until('postgres',
		qq{SELECT "position" >= $last FROM es.settled}),
	'readers that go by es.settled get the last events after a restart');
$node->stop;

#
# Without shared_preload_libraries every call says what to do.
#
my $bare = EsNode->create('bare', start => 0);
$bare->append_conf('postgresql.conf', "shared_preload_libraries = ''\n");
$bare->start;

$bare->safe_psql('postgres', 'CREATE EXTENSION es');
pass('the extension can be created in a server that does not preload it');

foreach my $call (
	q{SELECT es_append('a-1', 'A')},
	q{SELECT es_append_batch('a-1', '[{"type": "A"}]')},
	q{SELECT es_submit('A', '1')},
	q{SELECT * FROM es_read()},
	q{SELECT es_settled()},
	q{SELECT es_create_projection('p', 'SELECT FROM es_batch')},
	q{SELECT es_wait('p', 1)},
	q{SELECT * FROM es_stat_append},
	q{SELECT * FROM es_stat_workers})
{
	my ($status, $out, $err) = $bare->psql('postgres', $call, on_error_stop => 1);

	like($err, qr/ERROR:  es must be loaded through shared_preload_libraries\nHINT:  Put the line "shared_preload_libraries = 'es'" into postgresql.conf/,
		"not preloaded: $call");
}
is($bare->safe_psql('postgres', 'SELECT count(*) FROM es.event'), '0',
	'not preloaded: nothing was appended');
is($bare->safe_psql('postgres', q{
	CREATE FUNCTION evolve(state jsonb, event es.event) RETURNS jsonb LANGUAGE sql AS 'SELECT state';
	SELECT es_create_aggregate('a', 'evolve(jsonb, es.event)', '{"n": 0}');
	SELECT es_state('a-1')}), "\n{\"n\": 0}",
	'not preloaded: a state can be read');
$bare->stop;

done_testing();
