#
# Copies of a database: dumped and restored in every way, cloned from a template,
# cloned with the whole cluster.  The content is the same, positions go on, and
# a copy does not act before es_activate().
#
use strict;
use warnings;
use EsContent;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = EsNode->create('main', allows_streaming => 1, extension => 0);
my $dir = PostgreSQL::Test::Utils::tempdir;
my @read_models = qw(public.balance public.seen);

# A database with something in every table of the extension.
$node->safe_psql('postgres', 'CREATE ROLE shop LOGIN; CREATE ROLE clerk');
$node->safe_psql('postgres', 'CREATE DATABASE shop');
my $schema = q{
	CREATE TABLE balance (stream text PRIMARY KEY, amount numeric, n bigint);
	CREATE TABLE seen (n bigint, positions numeric);
	GRANT ALL ON balance, seen TO shop;
	CREATE FUNCTION positive(jsonb, es.command) RETURNS void LANGUAGE plpgsql AS
	$$ BEGIN IF ($2.payload->>'amount')::numeric <= 0 THEN RAISE 'not positive'; END IF; END $$;
	CREATE TYPE money_paid AS (amount numeric)};
$node->safe_psql('shop', "CREATE EXTENSION es; $schema");
$node->safe_psql('shop', q{
	INSERT INTO seen VALUES (0, 0);
	SELECT es_grant('shop', 'projector'), es_grant('clerk', 'reader');
	SELECT es_create_command('PAY', 'account', 'PAID', validate => 'positive(jsonb, es.command)',
		payload_type => 'money_paid');
	SELECT es_grant_command('clerk', 'PAY');
	ALTER TABLE es.event ENABLE ROW LEVEL SECURITY;
	CREATE POLICY all_of_it ON es.event FOR SELECT USING (category <> 'secret')});
$node->safe_psql('shop', q{SET ROLE shop;
	SELECT es_create_projection('balance', $$
		INSERT INTO balance SELECT stream, sum((payload->>'amount')::numeric), count(*) FROM es_batch GROUP BY stream
		ON CONFLICT (stream) DO UPDATE
			SET amount = balance.amount + excluded.amount, n = balance.n + excluded.n;
		UPDATE seen SET n = seen.n + b.n, positions = seen.positions + b.p
		  FROM (SELECT count(*), sum("position") FROM es_batch) b (n, p)$$, ARRAY['account'])});
$node->safe_psql('shop', q{
	SELECT es_append('account-' || g % 11, 'DEPOSITED', jsonb_build_object('amount', g, 'note', E'caf\u00e9 \\" \\\\ \t'),
		metadata => '{"user": "ann"}', tags => ARRAY['t' || g % 3, E'tab\there'])
	  FROM generate_series(1, 300) g;
	SELECT es_submit('PAY', g::text, '{"amount": 3}', ('00000000-0000-0000-0000-0000000000' || (10 + g))::uuid)
	  FROM generate_series(1, 20) g});
$node->psql('shop', q{BEGIN; SELECT es_append('account-1', 'LOST'); ROLLBACK});
ok($node->wait_caught_up('shop', 'balance'), 'the original is caught up');

my $original = content($node, 'shop', @read_models);
my $epoch = $node->safe_psql('shop', 'SELECT es_epoch()');
my ($last) = $node->safe_psql('shop', 'SELECT max("position") FROM es.event');

# All that must hold of a copy.
sub check_copy
{
	my ($copy, $database, $how, %params) = @_;

	is_deeply(content($copy, $database, @read_models), $original, "$how: the content is the same")
	  if $params{suspended} // 1;
	is($copy->safe_psql($database, q{SELECT es_epoch()}) eq $epoch, !!$params{same_epoch},
		"$how: the epoch is " . ($params{same_epoch} ? 'the same' : 'another'))
	  if exists $params{same_epoch};
	is($copy->safe_psql($database, q{SET ROLE clerk; SELECT count(*) FROM es_read(0, NULL)}),
		scalar @{ $original->{'es.event'} }, "$how: rights and policies are the same");

	# Events that come in now are taken, and wait.
	my $position = $copy->safe_psql($database, q{SELECT "position" FROM es_append('account-1', 'DEPOSITED', '{"amount": 1000}')});
	cmp_ok($position, '>', $last, "$how: positions go on");
	is($copy->safe_psql($database, q{SELECT max(version) = count(*) FROM es.event WHERE stream = 'account-1'}),
		't', "$how: versions go on");
	is($copy->safe_psql($database, q{SELECT events, duplicate FROM es_submit('PAY', '1', '{"amount": 3}',
		'00000000-0000-0000-0000-000000000011')}), '1|t', "$how: a retried command is known");
	if ($params{suspended} // 1)
	{
		is($copy->safe_psql($database, q{SELECT es.suspended(), (SELECT status FROM es_projections)}),
			't|suspended', "$how: the workers are suspended");
		is($copy->safe_psql($database, q{SELECT es_wait('balance', 0), es_wait('balance', (SELECT max("position") FROM es.event), '200 ms')}),
			't|f', "$how: nothing is applied");
		is($copy->safe_psql($database, q{SELECT count(*) FROM es_stat_workers WHERE kind = 'projector'}),
			'0', "$how: there is no projector");
		$copy->safe_psql($database, 'SELECT es_activate()');
	}
	ok($copy->wait_caught_up($database, 'balance'), "$how: after that the projections go on");
	is($copy->safe_psql($database, q{SELECT n, positions FROM seen}),
		$copy->safe_psql($database, q{SELECT count(*), sum("position") FROM es.event WHERE category = 'account'}),
		"$how: ... and have applied each event once");
	is($copy->safe_psql($database, q{SELECT count(*) FROM balance FULL JOIN
			(SELECT stream, sum((payload->>'amount')::numeric) AS amount FROM es.event GROUP BY stream) e USING (stream)
			WHERE balance.amount IS DISTINCT FROM e.amount}),
		'0', "$how: ... which is what they would give from scratch");
	is($copy->psql($database, 'DELETE FROM es.event'), 3, "$how: the log is guarded");
	is($copy->psql($database, q{INSERT INTO es.event SELECT * FROM es.event LIMIT 0}), 3,
		"$how: ... against direct INSERT, too");
	return;
}

sub dump_with
{
	command_ok([ 'pg_dump', '-d', $node->connstr('shop'), @_ ], "pg_dump @_[0 .. $#_ - 2]");
	return;
}

sub restore_with
{
	my ($database, @options) = @_;

	command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr($database), @options ],
		"pg_restore @options[0 .. $#options - 1]");
	return;
}

# plain
dump_with('-Fp', '-f', "$dir/plain.sql");
$node->safe_psql('postgres', 'CREATE DATABASE plain');
command_ok([ 'psql', '-XqAt', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('plain'), '-f', "$dir/plain.sql" ],
	'psql restores a plain dump');
check_copy($node, 'plain', 'plain', same_epoch => 1);

# in parallel
dump_with('-Fd', '-j', 2, '-f', "$dir/directory");
$node->safe_psql('postgres', 'CREATE DATABASE parallel');
restore_with('parallel', '-j', 4, "$dir/directory");
check_copy($node, 'parallel', 'pg_restore -j 4');

# data only, into a database that has the schema
$node->safe_psql('postgres', 'CREATE DATABASE data_only');
$node->safe_psql('data_only', "CREATE EXTENSION es; $schema;
	ALTER TABLE es.event ENABLE ROW LEVEL SECURITY;
	CREATE POLICY all_of_it ON es.event FOR SELECT USING (category <> 'secret');
	SELECT es_grant('clerk', 'reader'), es_grant('shop', 'projector');
	GRANT EXECUTE ON FUNCTION es_submit TO clerk");
$node->safe_psql('data_only', 'DELETE FROM es.role_grant');
restore_with('data_only', '--data-only', "$dir/directory");
check_copy($node, 'data_only', 'data only');

# schema first, then data
$node->safe_psql('postgres', 'CREATE DATABASE in_two_steps');
restore_with('in_two_steps', '--schema-only', "$dir/directory");
restore_with('in_two_steps', '--data-only', '-j', 2, "$dir/directory");
check_copy($node, 'in_two_steps', 'schema, then data');

# from a template
$node->safe_psql('postgres', 'CREATE DATABASE cloned TEMPLATE shop');
check_copy($node, 'cloned', 'CREATE DATABASE TEMPLATE');
ok($node->wait_caught_up('shop', 'balance'), 'the template goes on with its work');

# The cluster: first as it is, without workers, since nothing in it tells that
# it is a copy; then as what it may be, a standby that was promoted.
$node->backup('base');
my $clone = EsNode->new('clone');
$clone->init_from_backup($node, 'base');
$clone->append_conf('postgresql.conf', 'es.workers = off');
$clone->start;
is($clone->safe_psql('shop', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'es %'}),
	'0', 'a clone with es.workers = off has no workers');
is_deeply(content($clone, 'shop', @read_models), $original, 'pg_basebackup: the content is the same');
$clone->safe_psql('shop', q{SELECT es_append('account-1', 'DEPOSITED', '{"amount": 1}')});
is($clone->safe_psql('shop', q{SELECT es_wait('balance', (SELECT max("position") FROM es.event), '200 ms')}),
	'f', '... and nothing is applied');
$clone->append_conf('postgresql.conf', 'es.workers = on');
$clone->restart;
ok($clone->wait_caught_up('shop', 'balance'), 'with workers it goes on where the original was');
$clone->stop;

my $standby = EsNode->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
is_deeply(content($standby, 'shop', @read_models), $original, 'a standby has the same content');
is($standby->safe_psql('shop', 'SELECT es_settled() >= max("position") FROM es.event'), 't',
	'a standby reads up to the settled position that the scheduler wrote');
is($standby->safe_psql('shop', q{SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'es %'}),
	'0', 'a standby has no workers');
is($standby->psql('shop', q{SELECT es_append('account-1', 'X')}), 3, '... and takes no events');
$node->stop;
$standby->promote;
check_copy($standby, 'shop', 'a promoted standby', same_epoch => 0, suspended => 0);
$standby->stop;

done_testing();
