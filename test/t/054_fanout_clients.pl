# Consumers outside the database: programs of their own, in C and in Node.

use strict;
use warnings;

use EsExample;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

my $node = EsNode->create('clients');
my $events = 400;

sub sql { return $node->safe_psql('postgres', $_[0]); }

# Let a consumer that keeps its own account read while events come in and the
# server is restarted, once in peace and once by a crash.  $last names the type
# of the event that ends it.
sub follow
{
	my ($name, $last, @command) = @_;
	my $output = "$ENV{TESTDIR}/$name.out";
	my $before = sql('SELECT count(*) FROM es.event');
	my $pid = EsExample::start($output, @command, $node->connstr('postgres'), 'es', $last);

	for my $mode ('fast', 'immediate', undef)
	{
		sql(qq{SELECT es_append('account-' || i % 20, 'USED') FROM generate_series(1, $events / 4) i}) for 1, 2;
		if ($mode)
		{
			usleep(rand(200_000));
			$node->stop($mode);
			$node->start;
		}
	}
	sql(qq{SELECT es_append('account-1', '$last')});
	is(EsExample::wait_for_end($pid), 0, "$name: the consumer has seen the last event")
	  or EsExample::end($pid, 'KILL');
	is( slurp_file($output),
		sql(q{SELECT concat_ws(' ', "position", stream, version) FROM es_read(0, NULL)}) . "\n",
		"$name: and every one, once and in order, over restart and crash");
	return;
}

follow('C', 'END_C', EsExample::build('consumer'));

# Why the consumer in Node cannot run here, or nothing.
sub no_node
{
	my $modules = "$ENV{TESTDIR}/npm";

	return 'there is no node and npm here'
	  if system('node --version >/dev/null 2>&1 && npm --version >/dev/null 2>&1') != 0;
	mkdir $modules;
	return "npm cannot install pg here, see $modules/log"
	  if system("npm install --silent --no-audit --no-fund --prefix '$modules' pg >'$modules/log' 2>&1") != 0;
	$ENV{NODE_PATH} = "$modules/node_modules";
	return;
}

SKIP:
{
	my $why = no_node();

	# prove tells nobody of a skipped part.
	diag("the consumer in Node is not tried: $why") if $why;
	skip($why, 2) if $why;
	follow('Node', 'END_NODE', 'node', 'test/clients/consumer.js');
}

# The e-mail sender answers with commands, and dies between command and
# acknowledgement.
sql(q{
	SELECT es_create_command('REGISTER', 'customer', 'CUSTOMER_REGISTERED', creates => true);
	SELECT es_create_command('RECORD_EMAIL', 'mail', 'EMAIL_SENT');
	SELECT es_create_subscription('welcome', ARRAY['customer'], ARRAY['CUSTOMER_REGISTERED'],
		start_after => es_settled());
	SELECT es_submit('REGISTER', i::text, jsonb_build_object('email', 'c' || i || '@example.org'))
	  FROM generate_series(1, 20) i});
my $sender = EsExample::build('sender');
my $outbox = "$ENV{TESTDIR}/outbox";
my $output = "$ENV{TESTDIR}/sender.out";
for my $round (1 .. 3)
{
	my $pid = EsExample::start($output, $sender, $node->connstr('postgres'),
		'welcome', "sender $round", $outbox, 5);

	ok(!EsExample::wait_for_end($pid), "sender $round died after its command");
}
my $pid = EsExample::start($output, $sender, $node->connstr('postgres'), 'welcome', 'sender 4', $outbox);
$node->poll_query_until('postgres', q{SELECT count(*) = 20 FROM es.event WHERE type = 'EMAIL_SENT'});
$node->poll_query_until('postgres', q{SELECT delivered_position IS NULL FROM es_subscriptions WHERE name = 'welcome'});
EsExample::end($pid);
is(sql(q{SELECT count(*) || ' ' || count(DISTINCT payload->>'message') FROM es.event WHERE type = 'EMAIL_SENT'}),
	'20 20', 'every event is answered by one command, however often it is handed out');
my @mails = split /\n/, slurp_file($outbox);
my %ids = map { /Message-ID: (<[^>]+>)/ ? ($1 => 1) : () } @mails;
is(scalar(keys %ids), 20, 'every customer got a mail');
cmp_ok(scalar(@mails), '>', 20, 'some of them twice, with the same message id');
like(slurp_file($output), qr/was answered already/, 'and the sender was told so');

$node->stop;
done_testing();
