#
# Whoever meets a message in the server log or a SQLSTATE finds out in doc what it
# means and what to do.
#
use strict;
use warnings;
use Test::More;

sub slurp
{
	my ($file) = @_;

	open(my $handle, '<', $file) or die "$file: $!";
	local $/;
	return scalar <$handle>;
}

my $operations = slurp('doc/operations.md');
my $errors = slurp('doc/errors.md');
my @sources = glob('src/*.c src/*/*.c');

# A message as doc writes it: something stands where the code has a conversion,
# and what PostgreSQL or the user says at the end may be left out.
sub as_documented
{
	my ($format) = @_;
	my @parts = grep { /\w/ } split /%\w+|" INT64_FORMAT "?/, $format =~ s/: %s$//r =~ s/\\"/"/gr;

	return join('.*', map { quotemeta } @parts);
}

my $messages = 0;
foreach my $file (@sources)
{
	my $text = slurp($file);

	while ($text =~ /ereport\((?:LOG|WARNING|FATAL),(.*?)\)\);/gs)
	{
		my $report = $1;

		while ($report =~ /errmsg\("((?:[^"\\]|\\.|" INT64_FORMAT "?)*)"?,?/g)
		{
			my $message = $1;
			my $pattern = as_documented($message);

			$messages++;
			ok($operations =~ /^\| .*$pattern/m, "$file: \"$message\" is in doc/operations.md");
		}
	}
}
cmp_ok($messages, '>', 5, 'there are messages to look for');

# PostgreSQL's own names of SQLSTATEs, and ours.
my ($sharedir) = `${\ ($ENV{PG_CONFIG} // 'pg_config')} --sharedir` =~ /(.*)/;
my %sqlstate = slurp("$sharedir/errcodes.txt") =~ /^(\w{5})\s+[EW]\s+(ERRCODE_\w+)/mg;
%sqlstate = reverse %sqlstate;
my $ours = slurp('src/es.h');
while ($ours =~ /define (ERRCODE_ES_\w+)\s+MAKE_SQLSTATE\('(.)', '(.)', '(.)', '(.)', '(.)'\)/g)
{
	$sqlstate{$1} = "$2$3$4$5$6";
}

my %used;
$used{$_} = 1 foreach map { slurp($_) =~ /\berrcode\((ERRCODE_\w+)\)/g } @sources;
foreach my $name (sort keys %used)
{
	ok(defined $sqlstate{$name}, "$name has a SQLSTATE") or next;
	ok($errors =~ /`$sqlstate{$name}`/, "$sqlstate{$name} ($name) is in doc/errors.md");
}

done_testing();
