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
	append => 120_000,
	batch => 767_000);
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

# A log that is not quite empty, and a read model.
$node->safe_psql('postgres', q{
	SELECT count(es_append('account-' || n % 500, 'DEPOSITED', '{"amount": 7}'))
	  FROM generate_series(1, 6000) n;
	VACUUM ANALYZE es.event;
	CREATE TABLE balance (category text PRIMARY KEY, amount bigint NOT NULL);
});
$node->stop;

# The server, every process of which counts for itself, and writes down what it
# has counted since whenever it has appended, and whenever it has applied.
my $log = $node->logfile;
my $server = IPC::Run::start(
	[   'valgrind', '--tool=callgrind', '--trace-children=yes',
		'--dump-after=es_append', '--dump-after=es_projection_applied',
		"--callgrind-out-file=$counts/%p", 'postgres', '-D', $node->data_dir ],
	'>>', $log, '2>&1');
my $deadline = time + $EsNode::patience;

while (system('pg_isready', '-q', '-h', $node->host, '-p', $node->port) != 0)
{
	die 'the server does not start under valgrind' if time > $deadline;
	usleep(100_000);
}

# The process that appends a number of events, a transaction each, to 50 streams.
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
	my ($n) = @_;

	$node->safe_psql('postgres', qq{
		SELECT es_create_projection('balances', \$\$
			INSERT INTO balance
			SELECT category, sum((payload->>'amount')::bigint) FROM es_batch GROUP BY category
			ON CONFLICT (category) DO UPDATE SET amount = balance.amount + excluded.amount\$\$,
			batch_size => 100, start_after => (
				SELECT position FROM es.event ORDER BY position DESC OFFSET 100 * $n LIMIT 1));
		SELECT es_wait('balances', es_settled(), '$EsNode::patience s')});
	return $node->worker_pid('projector', 'postgres');
}

# What counts is an append to a stream that was appended to before.
append(50);
my %process = (append => append(100), batch => apply(30));

kill 'INT', $server->{KIDS}[0]{PID};
$server->finish;

# What a process has counted from one time it was done to the next.
sub instructions
{
	my ($pid) = @_;

	return map { slurp_file($_) =~ /^totals: (\d+)/m } glob "$counts/$pid.*";
}

# The median: now and then a process has to look at the catalogs again, too.
foreach my $what (sort keys %process)
{
	my @counts = sort { $a <=> $b } instructions($process{$what});
	my $cost = $counts[@counts / 2];

	note('counted ' . @counts . " times: $counts[0] to $counts[-1], median $cost");
	cmp_ok(scalar @counts, '>=', 30, "each $what was counted");
	cmp_ok($cost, '<=', $slack * $budget{$what},
		"one $what takes no more than $budget{$what} instructions, give or take a fifth");
}

done_testing();
