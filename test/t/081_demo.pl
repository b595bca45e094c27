#
# The demo shows what it is expected to show, and fails when it does not.
#
use strict;
use warnings;

use EsNode;
use IPC::Run qw(run);
use PostgreSQL::Test::Utils;
use Test::More;

my $node = EsNode->create('demo', extension => 0);
my $output;

# Play the demo that lies in a directory; true if it ended well.
sub play
{
	my ($directory) = @_;
	local %ENV = (%ENV,
		PGHOST => $node->host, PGPORT => $node->port, PGDATABASE => 'postgres');

	return run [ "$directory/play" ], '>&', \$output;
}

ok(play('demo'), 'every chapter prints what is expected') or diag($output);
like($output, qr/^SQLSTATE ES002$/m, 'a rejected command is shown with its error');
like($output, qr/^Asynchronous notification "es"/m, 'a notification is shown');
my $applied = $node->safe_psql('shop', q{
	SELECT bool_and(status = 'caught up' AND events_applied > 0) FROM es_projections});
is($applied, 't', 'every projection has applied its events');

# A chapter that prints something else, and one that meets an error.
my $copy = PostgreSQL::Test::Utils::tempdir;
system_or_bail('cp', '-r', 'demo', "$copy/demo");

foreach my $case (
	[ 'prints something else', qr/^\+SELECT 1;$/m, 'SELECT 1;' ],
	[ 'meets an error', qr/division by zero/, 'SELECT 1/0;' ])
{
	my ($what, $message, $sql) = @$case;

	$node->safe_psql('postgres', 'DROP DATABASE shop');
	append_to_file("$copy/demo/01-commands.sql", "$sql\n");
	ok(!play("$copy/demo"), "the demo fails when a chapter $what");
	like($output, $message, "and says where it $what");
	like($output, qr/^\Qdemo\/01-commands.sql did not go as expected.\E$/m,
		'and in which chapter');
}

done_testing();
