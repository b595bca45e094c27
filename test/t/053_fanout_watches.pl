# The change notifier: who is told of which keys.

use strict;
use warnings;

use EsListener;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep time);

my $node = EsNode->create('watches', conf => "es.watch_max_keys = 500\n");

sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(q{
	CREATE TABLE balance (account text, currency text, amount numeric, PRIMARY KEY (account, currency));
	CREATE TABLE other (id integer PRIMARY KEY);
	SELECT es_watch('balance', ARRAY['account', 'currency']);
	SELECT es_watch('other', ARRAY['id'], 'changes');
});
my $listener = EsListener->new($node, 'postgres', 'balance', 'changes');
my $key = '{"account": "a1", "currency": "EUR"}';
my ($channel) = $listener->run("SELECT es_watch_key('balance', '$key')") =~ /^(es_session_\S+)$/m;
$listener->run("LISTEN \"$channel\"");

# What a channel hears of some SQL; the last statement changes the table
# "other", so that one need not wait for silence.
my $fence = 0;

sub heard
{
	my ($sql, $of) = @_;

	$listener->forget;
	$fence++;
	sql("$sql; INSERT INTO other VALUES ($fence)");
	$listener->wait_for(qr/"changes" with payload .*"id": $fence\}/);
	return [ $listener->messages($of // 'balance') ];
}

sub keys_message { return sprintf('{"read_model":"public.balance","keys":[%s]}', join(',', @_)) }

sub key_of { return sprintf('{"account": "%s", "currency": "%s"}', @_); }

is_deeply(heard(q{INSERT INTO balance SELECT 'a' || i, 'EUR', 1 FROM generate_series(1, 3) i}),
	[ keys_message(key_of('a1', 'EUR'), key_of('a2', 'EUR'), key_of('a3', 'EUR')) ],
	'an INSERT announces its keys');
is_deeply(heard(q{UPDATE balance SET account = 'b1' WHERE account = 'a2'}),
	[ keys_message(key_of('a2', 'EUR'), key_of('b1', 'EUR')) ],
	'an UPDATE announces old and new keys');
is_deeply(heard(q{DELETE FROM balance WHERE account = 'a3'}),
	[ keys_message(key_of('a3', 'EUR')) ],
	'a DELETE announces its keys');
is_deeply(heard(q{INSERT INTO balance VALUES ('a1', 'EUR', 2), ('c1', 'EUR', 1)
		ON CONFLICT (account, currency) DO UPDATE SET amount = 9}),
	[ keys_message(key_of('a1', 'EUR'), key_of('c1', 'EUR')) ],
	'an upsert announces both kinds in one message');
is_deeply(heard(q{BEGIN; INSERT INTO balance VALUES ('d1', 'EUR', 1); ROLLBACK}), [],
	'what is rolled back is not announced');
is_deeply(heard(q{BEGIN; INSERT INTO balance VALUES ('d1', 'EUR', 1); SAVEPOINT s;
		INSERT INTO balance VALUES ('d2', 'EUR', 1); ROLLBACK TO s; COMMIT}),
	[ keys_message(key_of('d1', 'EUR')) ], 'nor what is rolled back to a savepoint');
is_deeply(heard(q{UPDATE balance SET amount = 0 WHERE false}), [],
	'a statement that changes nothing is not announced');
is_deeply(heard(q{BEGIN; UPDATE balance SET amount = 1 WHERE account = 'd1';
		UPDATE balance SET amount = 2 WHERE account = 'd1'; COMMIT}),
	[ keys_message(key_of('d1', 'EUR')) ], 'several changes of a key are one');
is_deeply(heard(q{TRUNCATE balance}), [ '{"read_model":"public.balance","many":true}' ],
	'TRUNCATE announces that many have changed');

# Messages are cut, and past a bound the keys are not named.
my $messages = heard(q{INSERT INTO balance SELECT repeat('long', 10) || i, 'EUR', 1 FROM generate_series(1, 500) i});
cmp_ok(scalar(@$messages), '>', 1, 'many keys are announced in several messages');
is((grep { length > 7999 } @$messages), 0, 'each within the limit of NOTIFY');
is(scalar(map { /"account"/g } @$messages), 500, 'that name them all');
is_deeply(heard(q{INSERT INTO balance SELECT 'many' || i, 'EUR', 1 FROM generate_series(1, 10000) i}),
	[ '{"read_model":"public.balance","many":true}' ],
	'past es.watch_max_keys the keys are not named');
is_deeply(heard(q{INSERT INTO balance VALUES (repeat('x', 9000), 'EUR', 1)}),
	[ '{"read_model":"public.balance","many":true}' ],
	'nor is one that no message has room for');
is_deeply(heard(q{SELECT es.rebuilt('balance')}),
	[ '{"read_model":"public.balance","rebuilt":true}' ],
	'a table that is built anew is announced as such, in one message');
like(heard(qq{INSERT INTO balance VALUES (E'quote " back \\\\ ''', 'EUR', 1)})->[0],
	qr/"quote \\" back \\\\ '"/, 'keys are valid JSON whatever is in them');

# One key, for one session.
is_deeply(heard(q{INSERT INTO balance VALUES ('a2', 'EUR', 1)}, $channel), [],
	'who watches one key is not told of others');
is_deeply(heard(q{INSERT INTO balance VALUES ('a1', 'EUR', 1), ('a1', 'USD', 1)}, $channel),
	[ keys_message($key) ], 'but of that');
is_deeply(heard(q{SELECT es.rebuilt('balance')}, $channel),
	[ '{"read_model":"public.balance","rebuilt":true}' ], 'and of what may have changed it');
is(sql(q{SELECT sessions FROM es_watches WHERE read_model = 'balance'::regclass}), 1,
	'es_watches counts the sessions');
$listener->run("SELECT es_unwatch_key('balance', '$key')");
is_deeply(heard(q{UPDATE balance SET amount = 5 WHERE account = 'a1'}, $channel), [],
	'until it watches it no more');
my $second = EsListener->new($node, 'postgres');
$second->run("SELECT es_watch_key('balance', '$key')");
is(sql(q{SELECT sessions FROM es_watches WHERE read_model = 'balance'::regclass}), 1,
	'another session watches it');
$second->finish;
$node->poll_query_until('postgres', q{SELECT sessions = 0 FROM es_watches WHERE read_model = 'balance'::regclass});
pass('and no more when it has ended');

# A projection's changes, and those of a sync one's transaction.
sql(q{
	SELECT es_create_projection('balances', $q$
		INSERT INTO balance SELECT stream, 'EUR', count(*) FROM es_batch GROUP BY stream
		ON CONFLICT (account, currency) DO UPDATE SET amount = balance.amount + excluded.amount$q$,
		ARRAY['account'])});
$listener->forget;
sql(q{SELECT es_append('account-' || i, 'OPENED') FROM generate_series(1, 2) i});
$listener->wait_for(qr/account-1.*account-2/);
is_deeply([ $listener->messages('balance') ],
	[ keys_message(key_of('account-1', 'EUR'), key_of('account-2', 'EUR')) ],
	'what a projection changes is announced, once a batch');

# A rebuild that finds differences.
sql(q{
	CREATE TABLE counted (stream text PRIMARY KEY, n bigint);
	SELECT es_watch('counted', ARRAY['stream'], 'balance');
	SELECT es_create_projection('counts', $q$
		INSERT INTO counted SELECT stream, count(*) FROM es_batch GROUP BY stream
		ON CONFLICT (stream) DO UPDATE SET n = counted.n + excluded.n$q$,
		ARRAY['account'], tables => ARRAY['counted'::regclass])});
ok($node->wait_caught_up('postgres', 'counts'), 'a projection has filled its table');
sql(q{DELETE FROM counted});
$listener->wait_for(qr/counted.*account-1.*\n(?s:.*)counted.*account-1/);
$listener->forget;
sql(q{SELECT es_rebuild('counts')});
$listener->wait_for(qr/"public.counted"/);
is_deeply([ $listener->messages('balance') ], [ '{"read_model":"public.counted","rebuilt":true}' ],
	'a rebuild is announced in one message');
is(sql('SELECT count(*) FROM counted'), 2, 'and the rows are there again');
sql(q{SELECT es_drop_projection('counts'), es_unwatch('counted')});

# A change must not fail for the notifier.
sql('ALTER TABLE balance RENAME currency TO unit');
is_deeply(heard(q{INSERT INTO balance VALUES ('r1', 'EUR', 1)}),
	[ '{"read_model":"public.balance","many":true}' ],
	'a key column that was renamed makes a change "many", not an error');
sql('ALTER TABLE balance RENAME unit TO currency');

# Definitions go along into a dump.
my $dump = "$ENV{TESTDIR}/watches.sql";
command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres') ], 'pg_dump');
sql('CREATE DATABASE restored');
command_ok([ 'psql', '-Xq', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('restored') ], 'restore');
is($node->safe_psql('restored', q{SELECT read_model, key_columns, channel FROM es_watches ORDER BY 1::text}),
	"balance|{account,currency}|balance\nother|{id}|changes", 'a restored database watches the same tables');

# After a restart: the sessions are gone, and so is what they watched.
$second = EsListener->new($node, 'postgres');
$second->run("SELECT es_watch_key('balance', '$key')");
cmp_ok(sql('SELECT count(*) FROM es.watched_key'), '>', 0, 'a key is watched');
$node->restart;
$listener = EsListener->new($node, 'postgres', 'balance', 'changes');
is_deeply(heard(q{INSERT INTO balance VALUES ('s1', 'EUR', 1)}),
	[ keys_message(key_of('s1', 'EUR')) ], 'watches outlive a restart');
is(sql('SELECT count(*) FROM es.watched_key'), 0, 'and keys are gone with the sessions that watched them');
sql(q{SELECT es_unwatch('balance')});
is_deeply(heard(q{INSERT INTO balance VALUES ('s2', 'EUR', 1)}), [], 'es_unwatch() ends them');
is(sql('SELECT count(*) FROM es.change'), 0, 'nothing is left over');
$listener->finish;

$node->stop;
done_testing();
