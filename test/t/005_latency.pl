# 005_latency.pl
#	  How long it takes from the commit of a command to the row in the read
#	  model, on an idle server.  Measured and printed, not judged: what is slow
#	  may be the machine.  And on a busy one, how many batches are made.

use strict;
use warnings;

use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;

my $samples = 100;
my $node = EsNode->create('latency', conf => 'log_statement = none');

$node->safe_psql('postgres', q{
	SELECT es_create_command('CREATE_CUSTOMER', 'customer', 'CUSTOMER_CREATED', creates => true);
	CREATE TABLE customer (id text PRIMARY KEY, name text);
	SELECT es_create_projection('customer', $$
		INSERT INTO customer SELECT substr(stream, 10), payload->>'name' FROM es_batch $$);
	CREATE TABLE sample (way text, ms float)});

# After a pause, in which everything goes to sleep, submit and commit a command,
# then look for its row, by looking again and again or by es_wait().
$node->safe_psql('postgres', qq{
	DO \$\$
	DECLARE
		position bigint;
		began timestamptz;
	BEGIN
		FOR i IN 1 .. 2 * $samples LOOP
			PERFORM pg_sleep(0.01 + random() / 100);
			position := s.position
				FROM es_submit('CREATE_CUSTOMER', i::text, '{"name": "Ann"}') s;
			COMMIT;
			began := clock_timestamp();
			IF i % 2 = 0 THEN
				PERFORM es_wait('customer', position, '60 s');
				ASSERT EXISTS (SELECT FROM customer WHERE id = i::text);
			ELSE
				WHILE NOT EXISTS (SELECT FROM customer WHERE id = i::text) LOOP
				END LOOP;
			END IF;
			INSERT INTO sample VALUES (CASE WHEN i % 2 = 0 THEN 'waiting' ELSE 'looking' END,
				extract(epoch FROM clock_timestamp() - began) * 1000);
			COMMIT;
		END LOOP;
	END
	\$\$});

for my $way ('looking', 'waiting')
{
	my ($n, $median, $p95) = split /\|/, $node->safe_psql('postgres', qq{
		SELECT count(*), round(percentile_cont(0.5) WITHIN GROUP (ORDER BY ms)::numeric, 2),
			round(percentile_cont(0.95) WITHIN GROUP (ORDER BY ms)::numeric, 2)
		  FROM sample WHERE way = '$way'});

	is($n, $samples, "each command was seen in the read model, by $way for it");
	diag("commit to row visible, by $way for it: median $median ms, 95th percentile $p95 ms");
}

#
# While events pour in they gather for a batch, for a millisecond each up to
# es.batch_interval, whoever commits meanwhile; unless somebody waits for them.
#
$node->append_conf('postgresql.conf', 'es.batch_interval = 60s');
$node->reload;
$node->safe_psql('postgres', q{
	SELECT es_drop_projection('customer');
	SELECT count(es_append('order-' || n, 'PLACED')) FROM generate_series(1, 60000) n});

my $script = $node->basedir . '/append.sql';
append_to_file($script, q{SELECT es_append('order-' || :client_id, 'PLACED')});
my ($out, $err) = ('', '');
my $load = IPC::Run::start([ 'pgbench', '-n', '-T', 3600, '-c', 2, '-f', $script,
		$node->connstr('postgres') ], '>', \$out, '2>', \$err);

# Wait until so many more events have been appended.
sub wait_for
{
	my ($n) = @_;
	my $last = 'SELECT max("position") FROM es.event';
	my $before = $node->safe_psql('postgres', $last);

	return if $node->poll_query_until('postgres', "SELECT ($last) > $before + $n");
	$load->pump_nb;
	die "nobody appends: $err";
}

wait_for(100);
$node->safe_psql('postgres', q{
	SELECT es_create_projection('order', 'SELECT FROM es_batch', categories => '{order}')});
ok($node->poll_query_until('postgres', q{
		SELECT position > 60000 FROM es_projections WHERE name = 'order'}), 'it catches up once');

my $batches = q{SELECT batches FROM es_projections WHERE name = 'order'};
my $made = $node->safe_psql('postgres', $batches);
wait_for(2000);
cmp_ok($node->safe_psql('postgres', $batches), '<=', $made + 5,
	'two thousand commits make no more than a few batches');
is($node->safe_psql('postgres', q{SELECT es_wait('order', es_settled(), '20 s')}), 't',
	'but who waits is not left waiting');

# Nor does a projection that fails wait, beside one with much to gather for.
$node->safe_psql('postgres', q{
	SELECT es_append('bad-1', 'BAD');
	SELECT es_create_projection('order2', 'SELECT FROM es_batch', categories => '{order}');
	SELECT es_create_projection('bad', $$
		SELECT 1 / CASE category WHEN 'bad' THEN 0 ELSE 1 END FROM es_batch$$,
		categories => '{bad,order}', on_error => 'skip')});
ok($node->poll_query_until('postgres', q{SELECT count(*) = 1 FROM es.dead_letter}),
	'nor does an event that cannot be applied wait until it is found');
$load->signal('TERM');
eval { $load->finish };

$node->stop;

done_testing();
