#
# Includes flow one way, so that each part can be read without those above it:
#
#	worker -> projection, fanout -> command -> store -> files in src itself
#
use strict;
use warnings;
use Test::More;

# The folders that the files of a folder may include from.
my %below = (
	store => [],
	command => ['store'],
	projection => [ 'store', 'command' ],
	fanout => [ 'store', 'command' ],
	worker => [ 'store', 'command', 'projection', 'fanout' ]);

# These wire the parts together and look at all of them.
my %sees_all = map { $_ => 1 } qw(init.c monitor.c);

my %exists = map { s,^src/,,r => 1 } glob('src/*.h src/*/*.h');

foreach my $file (map { s,^src/,,r } glob('src/*.[ch] src/*/*.[ch]'))
{
	my ($folder) = $file =~ m,^(.*)/,;
	my @wrong;

	open(my $source, '<', "src/$file") or die "$file: $!";
	while (my $line = <$source>)
	{
		push @wrong, "line $.: only compat.h looks at PG_VERSION_NUM"
		  if $line =~ /^\s*#.*\bPG_VERSION_NUM\b/ && $file ne 'compat.h';

		my ($header) = $line =~ /^\s*#\s*include\s*"([^"]+)"/ or next;

		if (defined $folder && $exists{"$folder/$header"})
		{
			push @wrong, "line $.: write \"$folder/$header\"";
			next;
		}
		my ($from) = $exists{$header} ? $header =~ m,^(.*)/, : undef;

		next if !defined $from || $sees_all{$file};
		next if defined $folder && $from eq $folder;
		next if defined $folder && grep { $from eq $_ } @{ $below{$folder} };
		push @wrong, "line $.: \"$header\" lies above";
	}
	ok(!@wrong, "$file includes only what lies below it")
	  or diag(join("\n", @wrong));
	ok(exists $below{$folder}, "$file is in a known folder") if defined $folder;
}

done_testing();
