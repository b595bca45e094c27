#
# How files look: no trailing whitespace, a line feed at the end, tabs in C,
# no line wider than 100 columns with tabs of 4 (130 in tests, whose statements
# are compared with what they print).  Lines with a string literal may be wider,
# since a message is in one piece for those who search for it.
#
use strict;
use warnings;
use File::Find;
use Test::More;
use Text::Tabs;

$tabstop = 4;

my @files;
find(
	{   no_chdir => 1,
		wanted => sub {
			s,^\./,,;
			$File::Find::prune = 1, return if m,^(\.git|results|output_iso)$,;
			return if -l $_ || !-f $_ || m,^sql/es--[^-]*\.sql$,;

			# Not written by hand: build products, outputs, data.
			return if /\.(o|so|bc|gc\w\w|out|diffs|csv|png|svg)$/;
			push @files, $_;
		}
	},
	'.');

foreach my $file (sort @files)
{
	my $is_c = $file =~ /\.[ch]$/;
	my @wrong;

	open(my $text, '<:encoding(UTF-8)', $file) or die "$file: $!";
	while (my $line = <$text>)
	{
		my $has_end = chomp $line;
		my $width = length(expand($line));

		push @wrong, "line $.: trailing whitespace" if $line =~ /\s$/;
		push @wrong, "line $.: no line feed at the end" if !$has_end;
		push @wrong, "line $.: indented with spaces"
		  if $is_c && $line =~ /^ +(?! |\*)/;
		push @wrong, "line $.: $width columns wide"
		  if $width > ($file =~ m,^test/, ? 130 : 100) && $line !~ /["']/ && $file !~ /\.md$/;
		note("$file line $.: $width columns wide")
		  if $is_c && $width > 79 && $line !~ /"/;
	}
	ok(!@wrong, $file) or diag(join("\n", @wrong));
}

# A reader who meets a file alone is told what it is.
foreach my $file (glob('src/*.[ch] src/*/*.[ch]'))
{
	my ($name) = $file =~ m,([^/]+)$,;

	open(my $source, '<', $file) or die "$file: $!";
	my @top = map { scalar(<$source>) // '' } 1 .. 3;
	ok($top[0] =~ m,^/\*-{60\,}$, && $top[1] eq " * $name\n" && $top[2] =~ /^ \*\t  \S/,
		"$file says what it is");
}

done_testing();
