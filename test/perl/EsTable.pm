# EsTable.pm
#	  A table as the tests print it at the end of a run, and as doc has it.
#
#	print table([ 'fault', 'rounds' ], [ 'kill -9', 3 ]);
#	report('doc/security.md', [ 'attack', 'answer' ], ...);

package EsTable;

use strict;
use warnings;

use Exporter 'import';
use List::Util qw(max);
use PostgreSQL::Test::Utils qw(slurp_file);
use Test::More;

our @EXPORT = qw(report table);

# The rows, the first of them the head, in columns: numbers to the right.
sub table
{
	my @rows = @_;
	my @columns = 0 .. $#{ $rows[0] };
	my @width = map { my $i = $_; max(map { length($_->[$i]) } @rows) } @columns;
	my @right = map { my $i = $_; !grep { $_->[$i] !~ /^\d+$/ } @rows[ 1 .. $#rows ] } @columns;

	return join('', map { my $row = $_;
		join('  ', map { sprintf($right[$_] ? '%*s' : '%-*s', $width[$_], $row->[$_]) } @columns)
		  =~ s/ +$//r . "\n" } @rows);
}

# Print a table, which a document must have word by word.
sub report
{
	my ($document, @rows) = @_;
	my $table = table(@rows);

	diag("\n$table");
	ok(index(slurp_file($document), $table) >= 0, "$document has the table that is printed here");
	return;
}

1;
