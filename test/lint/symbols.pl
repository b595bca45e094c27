#
# The library shares one name space with the server and every other library in
# it, so all that leaves it is named es_something.
#
use strict;
use warnings;
use Test::More;

my @symbols = map { (split)[2] } `nm --dynamic --defined-only es.so`;
my @foreign = grep {
	!/^(es_\w+|pg_finfo_es_\w+|_PG_init|_PG_fini|Pg_magic_func)$/
} @symbols;

# What gcov and the sanitizers add is theirs.
@foreign = grep { !/^(__gcov|__ubsan|__asan|mangle_path|_init$|_fini$)/ } @foreign;

is_deeply(\@foreign, [], 'the library exports only es_*');
foreach my $name ('_PG_init', 'Pg_magic_func')
{
	ok((grep { $_ eq $name } @symbols), "the library exports $name");
}

done_testing();
