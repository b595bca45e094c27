#
# Hostile owners of projections, owners of read models, and callers: whatever
# they try, their SQL has the rights of their own sessions and no others, and
# each event is applied once.  At the end, what was tried and what it came to.
#
use strict;
use warnings;
use EsClient;
use EsNode;
use EsTable;
use Test::More;
use Time::HiRes qw(time);

my $node = EsNode->create('main');

$node->safe_psql('postgres', q{
	CREATE ROLE alice LOGIN;
	CREATE ROLE group_of_alice;
	GRANT group_of_alice TO alice;
	CREATE ROLE mallory LOGIN;
	CREATE ROLE bob LOGIN;
	SELECT es_grant('alice', 'projector'), es_grant('bob', 'writer');
	GRANT CREATE, USAGE ON SCHEMA public TO alice, mallory;
	CREATE SCHEMA alice AUTHORIZATION alice;
	CREATE TABLE secret (s text);
	INSERT INTO secret VALUES ('of the superuser');
	CREATE TABLE server_process (pid int);
	GRANT SELECT ON server_process TO PUBLIC;
	CREATE TABLE outcome (attack text, answer text, who text DEFAULT current_user || '/' || session_user);
	GRANT INSERT ON outcome TO alice, mallory, bob;

	-- Try a statement, and note the answer.
	CREATE FUNCTION try(attack text) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		answer text := 'done';
	BEGIN
		BEGIN
			EXECUTE attack;
		EXCEPTION WHEN OTHERS THEN
			answer := SQLSTATE;
		END;
		INSERT INTO outcome VALUES (attack, answer);
	END $$;

	-- What somebody would try who finds himself in a server process.
	CREATE FUNCTION try_all() RETURNS void LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM try('SET ROLE postgres');
		PERFORM try('SET SESSION AUTHORIZATION postgres');
		PERFORM try('SET SESSION AUTHORIZATION mallory');
		PERFORM try('SELECT * FROM secret');
		PERFORM try('INSERT INTO secret VALUES (1)');
		PERFORM try('UPDATE es.checkpoint SET "position" = 0');
		PERFORM try('DELETE FROM es.projection');
		PERFORM try('INSERT INTO es.event SELECT * FROM es.event');
		PERFORM try('DELETE FROM es.event');
		PERFORM try('SET es.allow_destructive = on');
		PERFORM try('SET session_replication_role = replica');
		PERFORM try('SELECT es_activate()');
		PERFORM try('SELECT es_grant(current_user::regrole, ''admin'')');
		PERFORM try('ALTER ROLE alice SUPERUSER');
		PERFORM try('ALTER SYSTEM SET work_mem = 64');
		PERFORM try('COPY (SELECT 1) TO PROGRAM ''true''');
		PERFORM try('SELECT pg_read_file(''PG_VERSION'')');
		PERFORM try('SELECT pg_terminate_backend(pid) FROM server_process');
		PERFORM try('SELECT pg_cancel_backend(pid) FROM server_process');
		PERFORM try('COMMIT');
		PERFORM try('CREATE OR REPLACE FUNCTION public.es_settled() RETURNS bigint LANGUAGE sql AS ''SELECT 1::bigint''');
		-- and these are everybody's
		PERFORM try('RESET ROLE');
		PERFORM try('SET ROLE NONE');
		PERFORM try('RESET SESSION AUTHORIZATION');
		PERFORM try('SELECT 1');
	END $$;
});

sub answers
{
	my ($who) = @_;
	my %answers = map { split /=/, $_, 2 } split /\n/, $node->safe_psql('postgres', qq{
		SELECT DISTINCT replace(attack, '=', ':') || '=' || answer FROM outcome WHERE who LIKE '$who'});

	return \%answers;
}

my %expected = (
	(map { $_ => '42501' }
		'SET ROLE postgres', 'SET SESSION AUTHORIZATION postgres',
		'SET SESSION AUTHORIZATION mallory', 'SELECT * FROM secret',
		'INSERT INTO secret VALUES (1)', 'UPDATE es.checkpoint SET "position" : 0',
		'DELETE FROM es.projection', 'INSERT INTO es.event SELECT * FROM es.event',
		'DELETE FROM es.event', 'SET es.allow_destructive : on',
		'SET session_replication_role : replica', 'SELECT es_activate()',
		q{SELECT es_grant(current_user::regrole, 'admin')}, 'ALTER ROLE alice SUPERUSER',
		q{COPY (SELECT 1) TO PROGRAM 'true'},
		q{SELECT pg_read_file('PG_VERSION')},
		'SELECT pg_terminate_backend(pid) FROM server_process',
		'SELECT pg_cancel_backend(pid) FROM server_process',
		q{CREATE OR REPLACE FUNCTION public.es_settled() RETURNS bigint LANGUAGE sql AS 'SELECT 1::bigint'}),
	'ALTER SYSTEM SET work_mem : 64' => '25001',
	'COMMIT' => '0A000',
	(map { $_ => 'done' } 'RESET ROLE', 'SET ROLE NONE', 'RESET SESSION AUTHORIZATION', 'SELECT 1'));

# What each attack got, for the table at the end.
my (%got, @others);

sub append
{
	my ($n) = @_;

	return $node->safe_psql('postgres',
		qq{SELECT max((es_append('account-' || g % 7, 'DEPOSITED', '{"amount": 1}')).position)
			 FROM generate_series(1, $n) g});
}

sub applied_once
{
	my ($projection, $table, $what) = @_;

	my $well = ok($node->wait_caught_up('postgres', $projection), "$what: goes on");
	$well &= is($node->safe_psql('postgres', "SELECT n, positions FROM $table"),
		$node->safe_psql('postgres', 'SELECT count(*), sum("position") FROM es.event'),
		"$what: each event is applied once");
	return $well ? 'each event applied once' : 'HARM DONE';
}

append(1);
$node->safe_psql('postgres', 'INSERT INTO server_process VALUES (' . $node->worker_pid('scheduler') . ')');

# The owner of a projection.
my $alice = EsClient->connect($node, 'postgres', user => 'alice');
$alice->do(q{
	CREATE TABLE alice.total (n bigint, positions numeric);
	INSERT INTO alice.total VALUES (0, 0);
	CREATE TABLE alice.noticed (who text);
	CREATE FUNCTION alice.notice() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM public.try_all();
		INSERT INTO alice.noticed VALUES (current_user || '/' || session_user);
		RETURN NULL;
	END $$;
	CREATE CONSTRAINT TRIGGER at_commit AFTER UPDATE ON alice.total DEFERRABLE INITIALLY DEFERRED
		FOR EACH ROW EXECUTE FUNCTION alice.notice()});
$alice->do(q{SELECT es_create_projection('attack', $$
	SELECT public.try_all() WHERE EXISTS (SELECT FROM es_batch);
	UPDATE alice.total t SET n = t.n + b.n, positions = positions + b.p
	  FROM (SELECT count(*), sum("position") FROM es_batch) b (n, p)$$)});
append(20);
applied_once('attack', 'alice.total', 'a projection that tries everything');
$got{projection} = answers('alice/alice');
is_deeply($got{projection}, \%expected, '... gets what its owner would get in a session');
is_deeply(answers('%'), \%expected, '... and nothing runs as anybody else');
is($node->safe_psql('postgres', 'SELECT DISTINCT who FROM alice.noticed'),
	'alice/alice', 'a deferred trigger runs as the owner, too');
# The same in the session of a superuser who appends: a synchronous projection.
$node->safe_psql('postgres', 'TRUNCATE outcome');
$alice->do(q{SELECT es_create_projection('sync', 'SELECT public.try_all() WHERE EXISTS (SELECT FROM es_batch)',
	mode => 'sync')});
append(1);
my %in_other_session = (%expected,
	'ALTER SYSTEM SET work_mem : 64' => '25001',
	(map { $_ => '42501' } 'RESET ROLE', 'SET ROLE NONE', 'RESET SESSION AUTHORIZATION'));
$got{synchronous} = answers('alice/postgres');
is_deeply($got{synchronous}, \%in_other_session,
	q{a synchronous projection cannot become the superuser who appends});
is_deeply(answers('postgres/%'), {}, '... nor does anything run as him');
$alice->do(q{SELECT es_drop_projection('sync')});

# What the projector's session is left in does not matter to the next batch.
foreach my $setting (
	[ 'SET ROLE group_of_alice' ],
	[ q{SET search_path = ''} ],
	[ q{SET es.batch = '0,0'} ],
	[ q{SET es.batch = '0,1000000000'} ],
	[ 'SET default_transaction_isolation = serializable' ],
	[ 'SET default_transaction_read_only = on' ],
	[ 'SET default_transaction_deferrable = on' ],
	[ 'SET statement_timeout = 1' ],
	[ 'SET lock_timeout = 1' ],
	[ 'SET idle_in_transaction_session_timeout = 1' ],
	[ 'SET row_security = off' ],
	[ 'SET synchronous_commit = off' ],
	[ 'SET constraint_exclusion = on' ],
	[ 'SET enable_indexscan = off; SET enable_bitmapscan = off' ],
	[ 'SET plan_cache_mode = force_generic_plan' ],
	[ q{SET es.metadata = '{"a": 1}'} ],
	[ 'RESET ALL' ],
	[ 'DISCARD PLANS' ],
	[ 'CREATE TEMP TABLE es_batch (n int)' ],
	[ 'DECLARE c CURSOR WITH HOLD FOR SELECT * FROM es_batch' ],
	[ 'SELECT pg_advisory_lock(1)' ])
{
	my $statement = $setting->[0];
	my $number = $alice->quote($statement);

	$alice->do(q{DELETE FROM alice.noticed});
	$alice->do(qq{
		CREATE OR REPLACE FUNCTION alice.leave_behind() RETURNS void LANGUAGE plpgsql AS \$f\$
		BEGIN
			EXECUTE $number;
		END \$f\$});
	$alice->do(q{SELECT es_create_projection('leaver', 'SELECT alice.leave_behind() WHERE EXISTS (SELECT FROM es_batch)',
		start_after => es_settled())});
	append(1);
	$node->wait_caught_up('postgres', 'leaver');
	$alice->do(q{SELECT es_drop_projection('leaver')});
	append(3);
	push @others, [ 'leave it to the next batch', $statement,
		applied_once('attack', 'alice.total', "after a projection left '$statement' behind") ];
}

# A transaction control statement that hides in a procedure or in the query.
foreach my $query ('COMMIT', 'BEGIN; SELECT 1', 'CALL alice.p()', 'DO $d$ BEGIN COMMIT; END $d$',
	'PREPARE TRANSACTION $p$x$p$', 'SET ROLE postgres', 'LISTEN x', 'CREATE TABLE x ()')
{
	eval { $alice->do(q{SELECT es_create_projection('q', ?)}, undef, $query) };
	is($alice->state, '0A000', "a projection of '$query' is refused");
	push @others, [ 'make it the query of a projection', $query, $alice->state ];
}

# A projection that makes functions: they are the owner's.
$alice->do(q{
	CREATE FUNCTION alice.make() RETURNS void LANGUAGE plpgsql AS $f$
	BEGIN
		EXECUTE 'CREATE OR REPLACE FUNCTION alice.made() RETURNS int LANGUAGE sql AS ''SELECT 1''';
	END $f$});
$alice->do(q{SELECT es_create_projection('maker', 'SELECT alice.make() WHERE EXISTS (SELECT FROM es_batch)')});
$node->wait_caught_up('postgres', 'maker');
is($node->safe_psql('postgres', q{SELECT proowner::regrole FROM pg_proc WHERE proname = 'made'}),
	'alice', 'a function that a projection makes belongs to its owner');

# The owner of a table that somebody else's projection writes.
my $mallory = EsClient->connect($node, 'postgres', user => 'mallory');
$mallory->do(q{
	CREATE TABLE public.trap (n bigint);
	GRANT INSERT ON public.trap TO alice;
	CREATE FUNCTION public.spring() RETURNS trigger LANGUAGE plpgsql AS $$
	BEGIN
		PERFORM public.try_all();
		RETURN NEW;
	END $$;
	CREATE TRIGGER spring BEFORE INSERT ON public.trap FOR EACH ROW
		EXECUTE FUNCTION public.spring()});
$node->safe_psql('postgres', 'TRUNCATE outcome');
$alice->do(q{SELECT es_drop_projection('attack'), es_drop_projection('maker')});
$alice->do(q{SELECT es_create_projection('trapped', 'INSERT INTO public.trap SELECT count(*) FROM es_batch')});
$node->wait_caught_up('postgres', 'trapped');
$got{trigger} = answers('alice/alice');
is_deeply($got{trigger}, \%expected,
	q{a trigger of another's table runs with the projection owner's rights and no more});
is_deeply(answers('%'), \%expected, '... in its commit, too');
$alice->do(q{SELECT es_drop_projection('trapped')});

# A function of somebody else that fits a call better than the owner's own, in a
# schema of the search_path: it is found, and has the owner's rights and no more.
$alice->do(q{CREATE FUNCTION alice.shadowed(numeric) RETURNS void LANGUAGE sql AS 'SELECT'});
$mallory->do(q{CREATE FUNCTION public.shadowed(bigint) RETURNS void LANGUAGE sql AS 'SELECT public.try_all()'});
$node->safe_psql('postgres', 'TRUNCATE outcome');
$alice->do(q{SELECT es_create_projection('shadowed', 'SELECT shadowed(max("position")) FROM es_batch HAVING count(*) > 0')});
$node->wait_caught_up('postgres', 'shadowed');
$got{shadow} = answers('alice/alice');
is_deeply($got{shadow}, \%expected, q{a function that shadows the owner's runs with the owner's rights and no more});
is_deeply(answers('%'), \%expected, '... and nothing runs as anybody else');
$alice->do(q{SELECT es_drop_projection('shadowed')});

# A projection that is ended and cancelled by its own SQL.
$alice->do(q{
	CREATE TABLE alice.deaths (n bigint, positions numeric);
	INSERT INTO alice.deaths VALUES (0, 0);
	CREATE SEQUENCE alice.lives});
$alice->do(q{SELECT es_create_projection('mortal', $$
	UPDATE alice.deaths t SET n = t.n + b.n, positions = positions + b.p
	  FROM (SELECT count(*), sum("position") FROM es_batch) b (n, p);
	SELECT CASE nextval('alice.lives') WHEN 1 THEN pg_cancel_backend(pg_backend_pid())
		   WHEN 2 THEN pg_terminate_backend(pg_backend_pid()) END$$)});
$node->poll_query_until('postgres', q{
	SELECT "position" >= (SELECT max("position") FROM es.event) FROM es.checkpoint WHERE projection = 'mortal'})
  or die 'the projection has not come back';
push @others, [ 'call it in a projection', 'pg_cancel_backend, pg_terminate_backend of its worker',
	applied_once('mortal', 'alice.deaths', 'a projection that cancels and ends its own worker') ];
$alice->do(q{SELECT es_drop_projection('mortal')});

# Validators run as the caller, and can do no harm to the log.
$node->safe_psql('postgres', q{
	CREATE FUNCTION validator(jsonb, es.command) RETURNS void LANGUAGE plpgsql AS $$
	DECLARE
		attack text := $2.payload->>'attack';
	BEGIN
		CASE attack
			WHEN 'append' THEN PERFORM es_append($2.stream, 'INNER');
			WHEN 'drop' THEN EXECUTE 'SELECT es_drop_command(''DO'')';
			WHEN 'replace' THEN EXECUTE 'CREATE OR REPLACE FUNCTION validator(jsonb, es.command) RETURNS void LANGUAGE sql AS ''SELECT''';
			WHEN 'metadata' THEN PERFORM set_config('es.metadata', '{"forged": true}', true);
			WHEN 'recurse' THEN PERFORM es_submit('DO', $2.id, $2.payload);
			WHEN 'conflict' THEN RAISE 'forged' USING ERRCODE = 'ES001';
			WHEN 'retry' THEN RAISE 'forged' USING ERRCODE = '40001';
			WHEN 'who' THEN INSERT INTO outcome VALUES ('validate', $2.submitted_by);
			ELSE NULL;
		END CASE;
	END $$;
	SELECT es_create_command('DO', 'job', 'DONE', validate => 'validator(jsonb, es.command)');
	GRANT USAGE ON SCHEMA es TO bob});
my $bob = EsClient->connect($node, 'postgres', user => 'bob');

sub submit
{
	my ($attack, $id) = @_;

	my @row = eval {
		$bob->selectrow_array(q{SELECT version FROM es_submit('DO', ?, jsonb_build_object('attack', ?::text))},
			undef, $id, $attack);
	};
	my $answer = $@ ? $bob->state : $row[0];
	push @others, [ 'validator', $attack, $@ ? $answer : "appended as version $answer" ];
	return $answer;
}
is(submit('who', 1), 1, 'a validator may look');
is($node->safe_psql('postgres', q{SELECT answer, who FROM outcome WHERE attack = 'validate'}),
	'bob|bob/bob', '... as the caller');
is(submit('drop', 2), '42501', '... not drop what the caller may not drop');
is(submit('replace', 3), '42501', '... not replace itself');
is(submit('conflict', 4), 'ES001', '... and what it raises reaches the caller');
is(submit('retry', 5), '40001', '... whatever it is');
like(submit('recurse', 6), qr/^(54001|55000|ES00[12]|23505)$/, '... not recurse for ever');
is(submit('none', 7), 1, '... and a command without any attack goes through');
like(submit('append', 7), qr/^(27000|55000|3)$/,
	'... nor give two events one version by appending behind the back of its command');
is($node->safe_psql('postgres', q{
	SELECT count(*) FROM (SELECT stream FROM es.event GROUP BY stream
		HAVING count(*) <> max(version) OR min(version) <> 1) s}), '0', 'no stream has a gap after all that');

# NOTIFY can be heard by everybody.
my $anybody = EsClient->connect($node, 'postgres', user => 'mallory');
$anybody->do('LISTEN es');
$node->safe_psql('postgres', q{SELECT es_append('secret-agent', 'UNMASKED', '{"name": "top secret"}', NULL,
	'{"who": "top secret"}', ARRAY['top secret'])});
my ($notification, $deadline) = (undef, time + $EsNode::patience);
until ($notification = $anybody->pg_notifies)
{
	die 'no notification' if time > $deadline;
	select undef, undef, undef, 0.05;
}
like($notification->[2], qr/^\{"epoch":"\d+\/\d+","position":\d+\}$/,
	'a notification tells a position and nothing of the event');

my @ways = qw(projection synchronous trigger shadow);
report('doc/security.md', [ 'attack', @ways ],
	map { my $attack = $_; [ $attack =~ s/ :/ =/r, map { $got{$_}{$attack} // 'not tried' } @ways ] } sort keys %expected);
report('doc/security.md', [ 'how', 'what', 'answer' ], @others);

$_->disconnect foreach $alice, $mallory, $bob, $anybody;
$node->stop;
done_testing();
