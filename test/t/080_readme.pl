#
# What README.md and doc say: the SQL of the README, typed in from its first
# line to its last, prints what stands below it, and no function, view or
# setting goes without a word.
#
# Each ```sql block is run, in one session of one database that has es; a ```
# block that follows it is what it prints, and where none does it must print no
# error.  Where they differ, results/README.md is the README as it would be
# true.
#
use strict;
use warnings;

use EsNode;
use IPC::Run qw(run);
use PostgreSQL::Test::Utils;
use Test::More;

# What differs from one server to the next.
sub neutral
{
	my ($text) = @_;

	$text =~ s/(?<="epoch":)"[^"]*"/"..."/g;
	$text =~ s/(?<=with PID )\d+/N/g;
	$text =~ s/[ \t]+$//mg;
	return $text =~ s/\n+\z/\n/r;
}

my $is_news = qr/^Asynchronous notification /;

# What is printed and what is notified: when a notification arrives is open.
sub text_and_news
{
	my @lines = split /\n/, neutral($_[0]);

	return (join("\n", grep { $_ && !/$is_news/ } @lines),
		grep { /$is_news/ } @lines);
}

# Wait until all that is committed was announced: that stands in es.settled.
my $wait_for_news = q{
	DO $$ BEGIN
		FOR i IN 1..1800 LOOP
			PERFORM pg_sleep(0.1);
			EXIT WHEN EXISTS (SELECT FROM es.settled WHERE "position" = es_settled());
		END LOOP;
		PERFORM pg_sleep(0.1);
	END $$;
};

# Run the blocks in one session and return what each one prints, and what comes
# when they are done.
sub printed
{
	my ($node, @blocks) = @_;
	my $mark = 'end of block';
	my $output;

	run [ 'psql', '-X', '-d', $node->connstr('postgres') ],
	  '<', \join("\\echo $mark\n", @blocks, $wait_for_news), '>&', \$output
	  or die "psql failed: $output";
	$output =~ s/^psql:<stdin>:\d+: //mg;
	my @outputs = split /^$mark\n/m, $output, -1;

	is(scalar @outputs, 1 + @blocks, 'every block was run');
	return @outputs;
}

my $readme = slurp_file('README.md');
my $block = qr/^```sql\n(.*?)^```\n(?:\n*^```\n(.*?)^```\n)?/ms;
my (@blocks, @claims, @names);

while ($readme =~ /$block/g)
{
	push @blocks, $1;
	push @claims, $2;
	push @names, 'line ' . (1 + (substr($readme, 0, $-[0]) =~ tr/\n//));
}
ok(@blocks > 0, 'the README has SQL to run');

$ENV{PGUSER} = 'postgres';
my $node = EsNode->create('readme', extra => ['--username=postgres']);
my @outputs = printed($node, @blocks);
my (undef, @news) = text_and_news(join('', @outputs));
my $true = $readme;
my $i = 0;

pop @outputs;
foreach my $output (@outputs)
{
	my $name = "README.md $names[$i]";

	if (defined $claims[$i])
	{
		my ($text) = text_and_news($output);
		my ($claim, @claimed) = text_and_news($claims[$i]);
		my $is_true = is($text, $claim, "$name prints what it says");

		foreach my $claimed (@claimed)
		{
			$is_true &= ok((grep { $_ eq $claimed } @news), "$name is notified as it says")
			  or diag("claimed: $claimed", "\ncame: ", join("\n", @news));
		}
		# Leave a claim that is true as it is.
		$outputs[$i] = $claims[$i] if $is_true;
	}
	else
	{
		unlike($output, qr/^(ERROR|WARNING|FATAL)/m, "$name runs without an error");
	}
	$i++;
}

$i = 0;
$true =~ s{$block}{
	my ($sql, $claim, $result) = ($1, $2, $outputs[$i++]);

	$result =~ s/[ \t]+$//mg;
	$result =~ s/\n+\z/\n/;
	"```sql\n$sql```\n" . (defined $claim ? "\n```\n$result```\n" : '');
}ge;
mkdir 'results';
open(my $file, '>', 'results/README.md') or die "results/README.md: $!";
print $file $true;
close($file);

# Everything that there is has its word somewhere.
my $words = join("\n", map { slurp_file($_) } 'README.md', glob('doc/*.md'));

foreach my $name (split /\n/, $node->safe_psql('postgres', q{
	SELECT DISTINCT coalesce(p.proname, c.relname)
	  FROM pg_depend d
	  JOIN pg_extension x ON x.oid = d.refobjid AND x.extname = 'es'
	  LEFT JOIN pg_proc p ON d.classid = 'pg_proc'::regclass AND p.oid = d.objid
	  LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
	 WHERE d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'
	   AND coalesce(p.pronamespace, c.relnamespace) = 'public'::regnamespace
	 UNION
	SELECT name FROM pg_settings WHERE name LIKE 'es.%'
	 ORDER BY 1}))
{
	ok($words =~ /\b\Q$name\E\b/, "$name is described");
}

done_testing();
