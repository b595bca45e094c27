# Evolve functions, validators and deciders in C are called as those in SQL and
# PL/pgSQL are, and a fold keeps no more than a batch of what they leave behind.

use strict;
use warnings;
use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;

my $library = "$ENV{TESTDIR}/counter.so";
my ($includedir) = run_command([ 'pg_config', '--includedir-server' ]);
system_or_bail('gcc', '-Wall', '-Wextra', '-Wno-unused-parameter', '-Wno-sign-compare', '-O2',
	'-shared', '-fPIC', "-I$includedir", '-o', $library, 'test/functions/counter.c');

my $node = EsNode->create('main');
sub sql { return $node->safe_psql('postgres', $_[0]); }

sql(qq{
	CREATE FUNCTION evolve(jsonb, es.event) RETURNS jsonb LANGUAGE C IMMUTABLE
		AS '$library', 'counter_evolve';
	CREATE FUNCTION validate(jsonb, es.command) RETURNS void LANGUAGE C
		AS '$library', 'counter_validate';
	CREATE FUNCTION decide(jsonb, es.command) RETURNS SETOF es.new_event LANGUAGE C
		AS '$library', 'counter_decide';
	SELECT es_create_aggregate('counter', 'evolve(jsonb, es.event)', '{"n": 0}', 500);
	SELECT es_create_command('COUNT', 'counter', validate => 'validate(jsonb, es.command)',
							 decide => 'decide(jsonb, es.command)');
});

is(sql(q{SELECT sum(events), max(version) FROM generate_series(1, 50) i,
		es_submit('COUNT', '1', jsonb_build_object('n', i))}), '1275|1275',
	'a decider in C returns none, one or many events, row by row');
is(sql(q{SELECT count(*), count(*) FILTER (WHERE (es_state(stream, version)->>'n')::int = version)
		   FROM es.event}), '1275|1275', 'states folded in C are right at every version');
is(sql(q{SELECT count(*) FROM es.snapshot}), 2, 'with snapshots');
is(sql(q{SELECT es_drop_snapshots('counter'), es_state('counter-1')->'n'}), '2|1275', 'and without');
is(sql(q{SELECT (es_state('counter-1')->>'memory')::int < 100 * 1024}), 't',
	'a fold of 1,275 events that leave 10 kB each behind stays below 100 kB');

# What is raised in the middle leaves nothing, and the session goes on.
my ($status, $out, $err) = $node->psql('postgres', q{
	\set VERBOSITY sqlstate
	SELECT es_submit('COUNT', '1', '{"n": 10, "fail": 5}');
	SELECT es_submit('COUNT', '1', '{"n": 10, "null": 3}');
	SELECT es_submit('COUNT', '1', '{"n": 101}');
	SELECT version, events FROM es_submit('COUNT', '1', '{"n": 10}');
	SELECT version, events FROM es_submit('COUNT', '1', '{"n": 0}');
}, on_error_stop => 0);
is($out, "1285|10\n1285|0", 'after errors in the middle of a set the session decides on');
is(join(',', $err =~ /ERROR:\s+(\w+)/g), 'ES002,39000,ES002',
	'what is raised is a rejection, and a row that is none the mistake of the decider');

$node->stop;
done_testing();
