#
# pg_upgrade, from a major version to itself: what is special about the upgrade of
# a cluster with es shows all the same.
#
use strict;
use warnings;
use EsContent;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;

my $old = EsNode->create('old');
my ($bindir) = run_command([ 'pg_config', '--bindir' ]);

$old->safe_psql('postgres', q{
	CREATE ROLE shop LOGIN;
	SELECT es_grant('shop', 'projector'), es_grant('shop', 'reader');
	CREATE TABLE balance (stream text PRIMARY KEY, n bigint);
	GRANT ALL ON balance TO shop;
	CREATE TYPE payment AS (amount numeric);
	CREATE FUNCTION check_payment(jsonb, es.command) RETURNS void LANGUAGE sql AS 'SELECT';
	SELECT es_create_command('PAY', 'account', 'PAID', validate => 'check_payment(jsonb, es.command)',
		payload_type => 'payment');
	SELECT es_grant_command('shop', 'PAY');
	SET ROLE shop;
	SELECT es_create_projection('balance', $$
		INSERT INTO balance SELECT stream, count(*) FROM es_batch GROUP BY stream
		ON CONFLICT (stream) DO UPDATE SET n = balance.n + excluded.n$$, tables => '{balance}')});
$old->safe_psql('postgres', q{
	SELECT es_append('account-' || g % 7, 'OPENED', tags => ARRAY['x']) FROM generate_series(1, 100) g;
	SELECT es_submit('PAY', '1', '{"amount": 1}', '00000000-0000-0000-0000-000000000001')});
ok($old->wait_caught_up('postgres', 'balance'), 'the old cluster is caught up');
my $content = content($old, 'postgres', 'balance');
my $catalog = catalog($old, 'postgres');
$old->stop;

my $new = EsNode->create('new', start => 0);
my $before = $old->log_end;

# pg_upgrade writes where it stands.
chdir(PostgreSQL::Test::Utils::tempdir) or die;
my @upgrade = (
	'pg_upgrade', '--no-sync',
	'-d', $old->data_dir, '-D', $new->data_dir, '-b', $bindir, '-B', $bindir,
	'-s', $new->host, '-p', $old->port, '-P', $new->port);
command_ok([ @upgrade, '--check' ], 'pg_upgrade finds nothing to object to');
command_ok(\@upgrade, 'pg_upgrade upgrades');
ok(!-d $new->data_dir . '/pg_upgrade_output.d', '... and leaves no complaints');
ok(!$old->log_has(qr/es (launcher|scheduler|projector)/, $before), 'no worker ran meanwhile');

$new->start;
is_deeply(content($new, 'postgres', 'balance'), $content, 'the content is the same');
is_deeply(catalog($new, 'postgres'), $catalog, 'the extension is the same');
is($new->safe_psql('postgres', 'SELECT es.suspended()'), 't',
	'the workers are suspended: the new cluster has an identity of its own');
is($new->safe_psql('postgres', q{SELECT "position" > 101, version FROM es_append('account-1', 'X')}),
	't|17', 'positions and versions go on');
is($new->safe_psql('postgres', q{SELECT duplicate FROM es_submit('PAY', '1', '{"amount": 1}',
	'00000000-0000-0000-0000-000000000001')}), 't', 'a retried command is known');
$new->safe_psql('postgres', 'SELECT es_activate()');
ok($new->wait_caught_up('postgres', 'balance'), 'after es_activate() the projections go on');
is($new->safe_psql('postgres', 'SELECT sum(n) FROM balance'), '102', '... and have applied each event once');
is($new->psql('postgres', 'DELETE FROM es.event'), 3, 'the log is guarded');
$new->stop;

done_testing();
