#
# What README.md and doc say: the SQL of the README and of the pages named below,
# typed in from the first line of a page to its last, prints what stands below
# it, and no function, view or setting goes without a word.
#
# Each ```sql block is run, in one session for each page, of a database that has
# es; a ``` block that follows it is what it prints, and where none does it must
# print no error.  Where they differ, results has the page as it would be true.
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
	my ($node, $database, @blocks) = @_;
	my $mark = 'end of block';
	my $output;

	run [ 'psql', '-X', '-d', $node->connstr($database) ],
	  '<', \join("\\echo $mark\n", @blocks, $wait_for_news), '>&', \$output
	  or die "psql failed: $output";
	$output =~ s/^psql:<stdin>:\d+: //mg;
	my @outputs = split /^$mark\n/m, $output, -1;

	is(scalar @outputs, 1 + @blocks, 'every block was run');
	return @outputs;
}

# Run a page and compare.
sub check_page
{
	my ($node, $page) = @_;
	my $text = slurp_file($page);
	my $database = $page =~ s/\W/_/gr;
	my $block = qr/^```sql\n(.*?)^```\n(?:\n*^```\n(.*?)^```\n)?/ms;
	my (@blocks, @claims, @names);

	while ($text =~ /$block/g)
	{
		push @blocks, $1;
		push @claims, $2;
		push @names, "$page line " . (1 + (substr($text, 0, $-[0]) =~ tr/\n//));
	}
	ok(@blocks > 0, "$page has SQL to run");

	$node->safe_psql('postgres', qq{CREATE DATABASE "$database"});
	$node->safe_psql($database, 'CREATE EXTENSION es');
	my @outputs = printed($node, $database, @blocks);
	my (undef, @news) = text_and_news(join('', @outputs));

	pop @outputs;
	foreach my $i (0 .. $#outputs)
	{
		if (!defined $claims[$i])
		{
			unlike($outputs[$i], qr/^(ERROR|WARNING|FATAL)/m, "$names[$i] runs without an error");
			next;
		}
		my ($printed) = text_and_news($outputs[$i]);
		my ($claim, @claimed) = text_and_news($claims[$i]);
		my $is_true = is($printed, $claim, "$names[$i] prints what it says");

		foreach my $claimed (@claimed)
		{
			$is_true &= ok((grep { $_ eq $claimed } @news), "$names[$i] is notified as it says")
			  or diag("claimed: $claimed", "\ncame: ", join("\n", @news));
		}
		# Leave a claim that is true as it is.
		$outputs[$i] = $claims[$i] if $is_true;
	}
	write_true_page($page, $text, $block, \@claims, \@outputs);
	return;
}

# Write the page as it would be true.
sub write_true_page
{
	my ($page, $text, $block, $claims, $outputs) = @_;
	my $i = 0;

	$text =~ s{$block}{
		my ($sql, $claim, $result) = ($1, $claims->[$i], $outputs->[$i]);

		$i++;
		$result =~ s/[ \t]+$//mg;
		$result =~ s/\n+\z/\n/;
		"```sql\n$sql```\n" . (defined $claim ? "\n```\n$result```\n" : '');
	}ge;
	mkdir 'results';
	my $name = 'results/' . $page =~ s{.*/}{}r;
	open(my $file, '>', $name) or die "$name: $!";
	print $file $text;
	close($file);
	return;
}

$ENV{PGUSER} = 'postgres';
my $node = EsNode->create('readme', extra => ['--username=postgres']);

check_page($node, $_) foreach ('README.md', 'doc/projections.md');

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
