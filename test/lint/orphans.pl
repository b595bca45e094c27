#
# Every file in a test directory is run, and every expected output belongs to a
# test: a misnamed test would otherwise pass for ever.
#
use strict;
use warnings;
use File::Basename;
use Test::More;

sub names { return map { my $n = basename($_); $n =~ s/\.\w+$//; $n } @_; }

my @regress = names(glob('test/sql/*.sql'));
my @isolation = names(glob('test/isolation/specs/*.spec'));
my %known = map { $_ => 1 } @regress, @isolation;

# What each directory may hold, that is, what its runner takes.
my %taken = (
	'test/sql' => qr/\.sql$/,
	'test/isolation' => qr/^specs$/,
	'test/isolation/specs' => qr/\.spec$/,
	'test/pgtap' => qr/\.sql$/,
	'test/t' => qr/\.pl$/,
	'test/lint' => qr/\.pl$/,
	'test/clients' => qr/\.(c|h|js)$/,
	'test/functions' => qr/\.c$/,
	'test/perl' => qr/\.pm$/,
	'expected' => qr/\.out$/,
	'demo' => qr/^(\d\d-[\w-]+\.sql|expected|run|play|epilogue)$/,
	'demo/expected' => qr/\.out$/,
	'test' => qr/^(checks|fuzz|valgrind\.supp|sql|clients|functions|isolation|pgtap|t|lint|perl|run|setup|cluster|lib\.sh)$/);

foreach my $directory (sort keys %taken)
{
	my @strange = grep { $_ !~ $taken{$directory} }
	  map { basename($_) } glob("$directory/*");
	is_deeply(\@strange, [], "every file in $directory is run");
}

foreach my $name (@regress, @isolation)
{
	ok(-f "expected/$name.out", "$name has an expected output");
}

# A test may have alternatives: expected/name_1.out and so on.
my @unused = grep { !$known{$_} && !$known{s/_\d$//r} } names(glob('expected/*'));
is_deeply(\@unused, [], 'every expected output belongs to a test');

is_deeply([ names(glob('demo/expected/*')) ], [ names(glob('demo/*.sql')) ],
	'every chapter of the demo has an expected output, and every output a chapter');

# pg_regress looks into sql/ first, and all outputs lie in one directory.
my %seen;
my @twice = grep { $seen{$_}++ } @regress, @isolation, names(glob('sql/*.sql'));
is_deeply(\@twice, [], 'no two of tests, specs and files in sql/ share a name');

done_testing();
