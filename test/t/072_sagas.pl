# Sagas: projections that submit commands.  The two stories of the demo end as
# they should under load, crashes and terminated workers too: each event leads
# to its commands once.

use strict;
use warnings;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = EsNode->create('main', extension => 0);

# The chapters of the demo make the database, the sagas and their read models.
foreach my $chapter ('07-exchange-rates', '08-classes')
{
	command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres'),
			'-f', "demo/$chapter.sql" ], "chapter $chapter plays");
}

sub sql { return $node->safe_psql('sagas', $_[0]); }

# One more, which has no memory of its own: one command for each event.
sql(q{
	SELECT es_create_command('THANK', 'thanks', 'THANKED');
	SELECT es_create_projection('thank', $$
		SELECT es_submit('THANK', payload->>'customer', jsonb_build_object('order', stream),
						 metadata => jsonb_build_object('causation', "position"))
		  FROM es_batch ORDER BY "position"
	$$, types => '{ORDER_CREATED}', batch_size => 50);
});

# Orders in two currencies from 4 sessions, and answers to what is asked.
sub load
{
	my ($name) = @_;
	my $log = $node->basedir . "/$name.log";
	my $orders = $node->basedir . "/$name.orders";
	my $answers = $node->basedir . "/$name.answers";

	append_to_file($orders, q{
		\set c random(1, 30)
		\set amount random(1, 60)
		\set foreign random(0, 1)
		SELECT es_submit('CREATE_ORDER', md5(random()::text), jsonb_build_object(
			'customer', 'c' || :c, 'amount', :amount,
			'currency', CASE WHEN :foreign = 1 THEN 'USD' ELSE 'EUR' END));
	} =~ s/^\s+(?=\\)//gmr);
	append_to_file($answers, q{
		SELECT answer(order_id, currency, 1.08) FROM rate_wanted;
	});
	return IPC::Run::start([ 'pgbench', '-n', '-c', 4, '-j', 1, '-T', 3, '-f', "$orders\@20",
			'-f', "$answers\@1", $node->connstr('sagas') ], '>&', $log);
}

srand(my $seed = $ENV{ES_SEED} // time);
note("ES_SEED=$seed");
foreach my $round (1 .. 3)
{
	my $load = load("load$round");

	foreach (1 .. 2)
	{
		Time::HiRes::usleep(200_000 + rand(800_000));
		$node->safe_psql('sagas',
			q{SELECT pg_terminate_backend(pid) FROM es_stat_workers WHERE kind = 'projector'});
	}
	if ($round == 2)
	{
		$node->stop('immediate');
		$node->start;
	}
	$load->finish;
}

# Answer the last questions; then wait until no saga has anything left to do.
sub settle
{
	foreach (1 .. 3)
	{
		foreach my $projection ('orders', 'ask_for_rates', 'classify_customers', 'campaign_customers', 'thank')
		{
			ok($node->wait_caught_up('sagas', $projection), "$projection is caught up");
		}
		sql('SELECT count(*) FROM rate_wanted, answer(order_id, currency, 1.08)');
	}
	return;
}
settle();

my $orders = sql(q{SELECT count(*) FROM es.event WHERE type = 'ORDER_CREATED'});
cmp_ok($orders, '>', 100, "there were orders: $orders");
is(sql(q{SELECT count(*), count(DISTINCT payload->>'order') FROM es.event WHERE type = 'THANKED'}),
	"$orders|$orders", 'each order led to one command');
is(sql(q{
	SELECT bool_and(o.type = 'ORDER_CREATED' AND o.stream = t.payload->>'order')
	  FROM es.event t JOIN es.event o ON o."position" = (t.metadata->>'causation')::bigint
	 WHERE t.type = 'THANKED'}), 't', 'and says which event that was');

# The first story
is(sql(q{SELECT count(*) FROM order_list}), $orders, 'every order is in the list');
is(sql(q{SELECT count(*) FROM order_list WHERE euros IS NULL OR
		euros <> round(amount / CASE currency WHEN 'USD' THEN 1.08 ELSE 1 END, 2)}),
	0, 'with its amount in euros');
is(sql(q{SELECT count(*) FROM rate_wanted}), 0, 'no question is open');
is(sql(q{
	SELECT count(*) FROM (SELECT FROM es.event WHERE type = 'RATE_QUOTED'
		GROUP BY stream HAVING count(*) > 1) s}), 0, 'and none was answered twice');

# The second story
is(sql(q{
	SELECT count(*) FROM (
		SELECT payload->>'customer' AS customer, sum((payload->>'amount')::numeric) AS euros
		  FROM es.event WHERE type = 'ORDER_CREATED' AND payload->>'currency' = 'EUR' GROUP BY 1) o
	  LEFT JOIN turnover t USING (customer) WHERE t.euros IS DISTINCT FROM o.euros}),
	0, 'turnovers are the sums of the orders');
is(sql(q{
	SELECT count(*) FROM turnover t WHERE es_state('customer-' || t.customer)->>'class' <>
		CASE WHEN t.euros >= 1000 THEN 'A' WHEN t.euros >= 100 THEN 'B' ELSE 'C' END}),
	0, 'every customer is classified by what they bought');
is(sql(q{
	SELECT count(*) FROM turnover t LEFT JOIN campaign_customer c USING (customer)
	 WHERE coalesce(c.class, 'C') <> es_state('customer-' || t.customer)->>'class'}),
	0, 'and the campaign knows it');
is(sql(q{
	SELECT count(*) FROM (
		SELECT payload->'class' AS class, lag(payload->'class', 1, '"C"') OVER (PARTITION BY stream ORDER BY version) AS before
		  FROM es.event WHERE type = 'CUSTOMER_CLASSIFIED') s WHERE class = before}),
	0, 'no customer was told a class that they had');
sql(q{SELECT es_submit('RUN_EMAIL_CAMPAIGN', 'summer', '{"class": "B", "text": "more tea"}')});
is(sql(q{SELECT count(*) FROM es_stream('campaign-summer')}),
	sql(q{SELECT count(*) FROM turnover WHERE euros >= 100 AND euros < 1000}),
	'the campaign writes to the customers of its class');

$node->stop;
done_testing();
