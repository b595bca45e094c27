#
# Versions of the library and of the SQL: a pair that does not fit says so, and
# ALTER EXTENSION UPDATE leads to the same catalog as a fresh installation.
#
# The next version is made here, of the present one and of one more function.
#
use strict;
use warnings;
use EsContent;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;

my $dir = PostgreSQL::Test::Utils::tempdir;
my ($control) = slurp_file('es.control') =~ /^default_version = '(.*)'/m;
my $next = "$control.1";
my ($libdir) = run_command([ 'pg_config', '--pkglibdir' ]);

my $addition = qq{
CREATE FUNCTION es.next_version() RETURNS text
	AS 'MODULE_PATHNAME', 'es_epoch' LANGUAGE C STABLE PARALLEL SAFE;
COMMENT ON FUNCTION es.next_version() IS 'What the next version adds.';
REVOKE ALL ON FUNCTION es.next_version() FROM PUBLIC;
ALTER TABLE es.announced ADD COLUMN next_version boolean;
COMMENT ON COLUMN es.announced.next_version IS 'What the next version adds.';
};

# Build it, with both scripts and the delta, under a prefix of its own.
system_or_bail('cp', '-r', '.', "$dir/next");
open(my $file, '>>', "$dir/next/sql/monitor.sql") or die;
print $file $addition;
close $file;
open($file, '>', "$dir/next/sql/es--$control--$next.sql") or die;
print $file qq{\\echo Use "ALTER EXTENSION es UPDATE TO '$next'" to load this file. \\quit\n}, $addition;
close $file;
system_or_bail('sed', '-i', "s/^default_version.*/default_version = '$next'/", "$dir/next/es.control");
# The flags have changed, which make does not know: all that see the version.
unlink "$dir/next/src/catalog.o", "$dir/next/src/init.o", "$dir/next/es.so";
my $pg_config = $ENV{PG_CONFIG} // 'pg_config';
foreach my $command ('all', 'install')
{
	command_ok([ 'make', '-s', '-C', "$dir/next", $command, "DESTDIR=$dir/stage", "PG_CONFIG=$pg_config" ],
		"the next version: make $command");
}
my ($sharedir) = run_command([ 'pg_config', '--sharedir' ]);
my $present = ($ENV{ES_DESTDIR} // '') . "$sharedir/extension/es--$control.sql";
system_or_bail('cp', $present, "$dir/stage$sharedir/extension/");

# The settings that make a server load the one or the other library.
sub stage
{
	my ($prefix) = @_;

	return "extension_destdir = '$prefix'\ndynamic_library_path = '$prefix$libdir:$libdir'\n";
}

my $node = EsNode->create('main');
my $present_stage = stage($ENV{ES_DESTDIR} // '');
my $next_stage = stage("$dir/stage");
my $misfit = qr/extension "es" is at version \Q$control\E, but the loaded library is of version \Q$next\E/;

$node->safe_psql('postgres', q{
	SELECT es_append('a-1', 'A') FROM generate_series(1, 10);
	CREATE TABLE total (n bigint);
	SELECT es_create_projection('total', 'INSERT INTO total SELECT count(*) FROM es_batch')});
ok($node->wait_caught_up('postgres', 'total'), 'the present version works');
$node->stop;

# A newer library than SQL: nothing works, nothing breaks, the log is guarded,
# and ALTER EXTENSION UPDATE is the way on.
my $offset = $node->log_end;
$node->append_conf('postgresql.conf', $next_stage);
$node->start;
my ($status, $stdout, $stderr);
foreach my $call (
	q{SELECT es_append('a-1', 'B')},
	q{SELECT es_append_batch('a-1', '[{"type": "B"}]')},
	q{SELECT es_submit('C', '1')},
	q{SELECT es_settled()},
	q{SELECT * FROM es_read()},
	q{SELECT es_wait('total', 1)},
	q{SELECT es_create_command('C', 'c', 'D')},
	q{SELECT es_create_projection('p', 'SELECT FROM es_batch')},
	q{SELECT es_activate()},
	q{SELECT * FROM es_projections},
	q{INSERT INTO es.event SELECT * FROM es.event})
{
	($status, $stdout, $stderr) = $node->psql('postgres', $call);
	like($stderr, $misfit, "a newer library than SQL: $call says so");
}
foreach my $attack ('DELETE FROM es.event', 'ALTER TABLE es.event DISABLE TRIGGER ALL', 'DROP EXTENSION es')
{
	($status, $stdout, $stderr) = $node->psql('postgres', $attack);
	like($stderr, qr/is refused: the log is append-only/, "... and $attack is refused");
}
is($node->safe_psql('postgres', 'SELECT count(*) FROM es.event'), '10', '... and events can be read by SQL');
ok($node->wait_for_log($misfit, $offset), '... and a worker says so in the log');
ok(!$node->log_has(qr/terminated by signal|PANIC/, $offset), '... and nothing crashes');

# A session that was open before, and has what it knows cached, goes on.
my $session = IPC::Run::start(
	[ 'psql', '-XqAt', '-d', $node->connstr('postgres') ],
	'<', \my $stdin, '>', \my $out, '2>', \my $err);
$stdin = "SELECT es_append('a-1', 'B');\n\\echo tried\n";
$session->pump until $out =~ /tried/;
$node->safe_psql('postgres', "ALTER EXTENSION es UPDATE TO '$next'");
$stdin = "SELECT version FROM es_append('a-1', 'B');\n\\echo tried again\n";
$session->pump until $out =~ /tried again/;
$session->finish;
like($out, qr/^11$/m, 'after ALTER EXTENSION UPDATE a session goes on');
is($node->safe_psql('postgres', 'SELECT es.next_version() = es_epoch()'), 't', '... with what is new');
ok($node->wait_caught_up('postgres', 'total'), '... and so do the workers');
is($node->safe_psql('postgres', 'SELECT sum(n) FROM total'), '11', '... that apply each event once');

# Fresh and upgraded are the same.
$node->safe_psql('postgres', 'CREATE DATABASE fresh');
$node->safe_psql('fresh', 'CREATE EXTENSION es');
my $fresh = catalog($node, 'fresh');
my $upgraded = catalog($node, 'postgres');
cmp_ok(scalar(@$fresh), '>', 100, 'the catalog has a lot to compare');
ok((grep { /next_version/ } @$fresh) >= 3, '... and what is new in it');
is_deeply($upgraded, $fresh, 'a fresh installation and an upgraded one are the same in the catalog');
$node->safe_psql('fresh', 'COMMENT ON FUNCTION es_epoch() IS NULL');
isnt(join("\n", @{ catalog($node, 'fresh') }), join("\n", @$upgraded), '... which would show a comment that is missing');
$node->stop;

# An older library than SQL.
$offset = $node->log_end;
$node->append_conf('postgresql.conf', $present_stage);
$node->start;
($status, $stdout, $stderr) = $node->psql('postgres', q{SELECT es_append('a-1', 'C')});
like($stderr, qr/extension "es" is at version \Q$next\E, but the loaded library is of version \Q$control\E/,
	'an older library than SQL says so');
like($stderr, qr/HINT: .*ALTER EXTENSION es UPDATE.* restart the server/, '... and what to do');
($status, $stdout, $stderr) = $node->psql('postgres', 'DELETE FROM es.event');
like($stderr, qr/is refused: the log is append-only/, '... and the log is guarded');
ok(!$node->log_has(qr/terminated by signal|PANIC/, $offset), '... and nothing crashes');
$node->stop;

done_testing();
