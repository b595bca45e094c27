#
# What an append and a batch cost, in instructions of the server, which valgrind
# counts the same on a busy machine and an idle one.  bench/NOTES.md says what
# they are made of.  Who makes one cheaper lowers its budget; who has to make
# one dearer says so there.
#
use strict;
use warnings;

use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(usleep);

# Instructions, on x86_64 with PostgreSQL 15 as Debian compiles both.
my %budget = (
	append => 120_500,
	batch => 482_500);
my $slack = 1.2;

plan skip_all => 'valgrind is not installed'
  if system('valgrind --version >/dev/null 2>&1') != 0;
plan skip_all => "the budget is not for code compiled with COPT=\"$ENV{COPT}\""
  if $ENV{COPT};

my $node = EsNode->create('instructions', conf => 'autovacuum = off');

plan skip_all => 'the budget is one of PostgreSQL 15 on x86_64'
  if $node->safe_psql('postgres', 'SELECT version()') !~ /^PostgreSQL 15.*x86_64/;
plan skip_all => 'the budget is not for a server with assertions'
  if $node->safe_psql('postgres', 'SHOW debug_assertions') eq 'on';

my $counts = PostgreSQL::Test::Utils::tempdir;

# A log that is not quite empty, and read models.
$node->safe_psql('postgres', q{
	SELECT count(es_append('account-' || n % 500, 'DEPOSITED', '{"amount": 7}'))
	  FROM generate_series(1, 6000) n;
	VACUUM ANALYZE es.event;
	CREATE ROLE short SUPERUSER LOGIN;
	CREATE ROLE long SUPERUSER LOGIN;
	CREATE TABLE short (category text PRIMARY KEY, amount bigint NOT NULL);
	CREATE TABLE long (category text PRIMARY KEY, amount bigint NOT NULL);
});
$node->stop;

# The server, every process of which counts for itself.
my $log = $node->logfile;
my $server = IPC::Run::start(
	[   'valgrind', '--tool=callgrind', '--trace-children=yes',
		"--callgrind-out-file=$counts/%p", 'postgres', '-D', $node->data_dir ],
	'>>', $log, '2>&1');
my $deadline = time + $EsNode::patience;

while (system('pg_isready', '-q', '-h', $node->host, '-p', $node->port) != 0)
{
	die 'the server does not start under valgrind' if time > $deadline;
	usleep(100_000);
}

# The process that appends a number of events, a transaction each, to streams that
# were appended to before.
sub append
{
	my ($n) = @_;
	my $script = "SELECT pg_backend_pid();\n"
	  . "PREPARE append(text) AS SELECT es_append('account-' || \$1, 'DEPOSITED', "
	  . "'{\"amount\": 7, \"note\": \"a payload of a common length, as far as there is one\"}');\n"
	  . join('', map { "EXECUTE append('" . $_ * 7 % 50 . "');\n" } 1 .. $n);
	my ($pid) = split /\n/, $node->safe_psql('postgres', $script);

	return $pid;
}

# The process that applies a number of batches of 100 events.
sub apply
{
	my ($role, $n) = @_;

	$node->safe_psql('postgres', qq{
		SET SESSION AUTHORIZATION $role;
		SELECT es_create_projection('$role', \$\$
			INSERT INTO $role
			SELECT category, sum((payload->>'amount')::bigint) FROM es_batch GROUP BY category
			ON CONFLICT (category) DO UPDATE SET amount = $role.amount + excluded.amount\$\$,
			batch_size => 100, start_after => (
				SELECT position FROM es.event ORDER BY position DESC OFFSET 100 * $n LIMIT 1));
		SELECT es_wait('$role', es_settled(), '$EsNode::patience s')});
	return $node->worker_pid('projector', 'postgres', $role);
}

my %process = (
	append => { 100 => append(100), 500 => append(500) },
	batch => { 15 => apply('short', 15), 45 => apply('long', 45) });
my $batches = $node->safe_psql('postgres',
	'SELECT name, batches FROM es_projections ORDER BY name');

kill 'INT', $server->{KIDS}[0]{PID};
$server->finish;

sub instructions
{
	my ($pid) = @_;
	my ($total) = slurp_file("$counts/$pid") =~ /^totals: (\d+)/m;

	return $total;
}

is($batches, "long|45\nshort|15", 'the batches are those that were asked for');
foreach my $what (sort keys %process)
{
	my ($few, $many) = sort { $a <=> $b } keys %{ $process{$what} };
	my $cost = int((instructions($process{$what}{$many}) - instructions($process{$what}{$few}))
		/ ($many - $few));

	note("one $what: $cost instructions");
	cmp_ok($cost, '<=', $slack * $budget{$what},
		"one $what takes no more than $budget{$what} instructions, give or take a fifth");
}

done_testing();
