#
# Min() and Max() are macros that evaluate one argument twice: nothing that does
# something, or takes its time, may be called in them.
#
use strict;
use warnings;
use Test::More;

# What may: no function, or cheap and without effect.
my $harmless = qr/sizeof|strlen|list_length|lfirst|pg_atomic_read_u\d+/;

foreach my $file (glob('src/*.c src/*/*.c'))
{
	open(my $source, '<', $file) or die "$file: $!";
	my $text = do { local $/; <$source> };
	my @wrong;

	while ($text =~ /\b(?:Min|Max)(\((?:[^()]++|(?1))*\))/g)
	{
		my ($arguments, $line) = ($1, 1 + (substr($text, 0, $-[0]) =~ tr/\n//));

		push @wrong, "line $line: $1()"
		  while $arguments =~ /\b(?!(?:$harmless)\b)([a-z]\w*)\s*\(/g;
	}
	ok(!@wrong, "$file calls nothing in Min() or Max()") or diag(join("\n", @wrong));
}

done_testing();
