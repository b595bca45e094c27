#
# A log that logical replication feeds: transactions come as they commit, which is
# not the order of positions, and nobody may pass one that is still to come; and
# when the subscriber takes over, positions and versions go on.
#
use strict;
use warnings;
use EsClient;
use EsNode;
use Test::More;

my $publisher = EsNode->create('publisher', allows_streaming => 'logical');
my $subscriber = EsNode->create('subscriber');
my $connection = $publisher->connstr . ' dbname=postgres';
my $reader = EsClient->connect($subscriber, 'postgres');
my $after = 0;
my @read;

# Wait until all that is committed and settled at the publisher has come.
sub catch_up
{
	$publisher->poll_query_until('postgres',
		'SELECT coalesce((SELECT "position" FROM es.settled), 0) = es_settled()') or die;
	$publisher->wait_for_catchup('feed');
	return;
}

# Read on from the last position, as a consumer does.
sub read_on
{
	my $events = $reader->selectall_arrayref('SELECT "position", type FROM es_read(?, NULL)', undef, $after);

	push @read, map { $_->[1] } @$events;
	$after = $events->[-1][0] if @$events;
	return join(' ', map { $_->[1] } @$events);
}

$reader->do('SELECT es_settled()');
$publisher->safe_psql('postgres', q{
	SELECT es_append('a-1', 'E' || g) FROM generate_series(1, 5) g;
	CREATE PUBLICATION log FOR TABLE es.event, es.tag, es.settled});
$subscriber->safe_psql('postgres', "CREATE SUBSCRIPTION feed CONNECTION '$connection' PUBLICATION log");
$subscriber->wait_for_subscription_sync($publisher, 'feed');
catch_up();
is(read_on(), 'E1 E2 E3 E4 E5', 'a subscriber reads what was there when it subscribed');

# The second commits before the first.
my $slow = EsClient->connect($publisher, 'postgres');
$slow->begin_work;
$slow->do(q{SELECT es_append('slow-1', 'SLOW')});
$publisher->safe_psql('postgres', q{SELECT es_append('b-1', 'FAST')});
$publisher->wait_for_catchup('feed');
is($subscriber->safe_psql('postgres', q{SELECT count(*) FROM es.event WHERE type = 'FAST'}), '1',
	'an event that was committed early has come');
is(read_on(), '', '... but nobody reads past the position of one that is still to come');
is($subscriber->safe_psql('postgres', 'SELECT es_settled()'), '5', '... which es_settled() says, too');
is($subscriber->safe_psql('postgres', q{BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM es_read()}),
	'5', '... and in REPEATABLE READ');
$slow->commit;
$slow->disconnect;
catch_up();
is(read_on(), 'SLOW FAST', 'when that has come, both are read in the order of the log');

# Workers here must not write what they cannot know.
$subscriber->restart;
$reader = EsClient->connect($subscriber, 'postgres');
$subscriber->worker_pid('scheduler');
$publisher->safe_psql('postgres', q{SELECT es_append('a-1', 'E' || g) FROM generate_series(6, 90) g});
catch_up();
is($subscriber->safe_psql('postgres', 'SELECT "position" FROM es.settled'),
	$publisher->safe_psql('postgres', 'SELECT "position" FROM es.settled'),
	'es.settled is what the publisher has written');
read_on();

# An append that is rolled back changes nothing of that.
$subscriber->safe_psql('postgres', q{BEGIN; SELECT es_append('mine-1', 'X'); ROLLBACK});
$publisher->safe_psql('postgres', q{SELECT es_append('a-1', 'E' || g) FROM generate_series(91, 95) g});
catch_up();
is(read_on(), 'E91 E92 E93 E94 E95', 'after an append that was rolled back the subscriber goes on');

# The subscriber takes over, with sessions that have seen it all.
my $old = EsClient->connect($subscriber, 'postgres');
$old->do('SELECT es_settled()');
$subscriber->safe_psql('postgres', 'DROP SUBSCRIPTION feed');
$publisher->stop;
is($old->selectrow_array('SELECT es_settled() = max("position") FROM es.event'), 1,
	'without a subscription all that has come is settled');
my ($position, $version) = $old->selectrow_array(q{SELECT "position", version FROM es_append('a-1', 'MINE')});
is($version, 96, 'the first append goes on with the versions');
is($old->selectrow_array(q{SELECT max("position") FROM es.event WHERE type <> 'MINE'}) < $position, 1,
	'... and with the positions');
is(read_on(), 'MINE', '... and is read');
is($subscriber->safe_psql('postgres', q{SELECT count(*) FROM es.event}), scalar(@read),
	'the reader has had every event once');
is($subscriber->safe_psql('postgres', 'SELECT es.suspended()'), 'f', 'the log is that of this database');
ok($subscriber->poll_query_until('postgres', 'SELECT "position" = es_settled() FROM es.settled'),
	'... and its scheduler writes the settled position');

$_->disconnect foreach $reader, $old;
$subscriber->stop;
done_testing();
