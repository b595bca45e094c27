#
# The installation script resists whoever was in the database before it: the
# rules that PostgreSQL's documentation and past CVEs teach.
#
use strict;
use warnings;
use Test::More;

my @deltas = glob('sql/es--*--*.sql');
my ($script) = grep { !/--.*--/ } glob('sql/es--*.sql');

sub slurp
{
	my ($file) = @_;

	open(my $handle, '<', $file) or die "$file: $!";
	local $/;
	return scalar <$handle>;
}

# Blank out comments and what is quoted, but for the bodies of functions.
sub code_of
{
	my ($text) = @_;

	$text =~ s/--[^\n]*//g;
	$text =~ s/'(?:[^']|'')*'/''/g;
	return $text;
}

# The statements, each in one piece with its dollar-quoted body.
sub statements_of
{
	my ($text) = @_;

	return $text =~ /((?:\$(\w*)\$.*?\$\2\$|[^;\$])+;)/gs ? map { $_ // '' } $text =~ /((?:\$\$.*?\$\$|[^;\$])+;)/gs : ();
}

foreach my $file ($script, @deltas)
{
	my $text = slurp($file);
	my $code = code_of($text);

	like($text, qr/^\\echo Use "(CREATE|ALTER) EXTENSION es[^\n]*" to load this file\. \\quit\n/,
		"$file is not run by psql");
	unlike($text, qr/^\s*\\(?!echo Use)/m, "$file has no other command of psql");
	unlike($code, qr/\bCREATE\s+OR\s+REPLACE\b/i,
		"$file replaces nothing that was there before")
	  if $file eq $script;
	unlike($code, qr/\bCREATE\s+[\w\s]+\bIF\s+NOT\s+EXISTS\b/i, "$file takes over nothing that was there before");
	unlike($text, qr/['"\$]\@extschema/, "$file does not put the schema's name into quotes");
	unlike($code, qr/\bSECURITY\s+LABEL\b|\bSET\s+(SESSION\s+AUTHORIZATION|ROLE)\b/i,
		"$file changes nobody's identity");

	foreach my $statement (statements_of($text))
	{
		my ($function) = $statement =~ /\bCREATE\s+(?:OR\s+REPLACE\s+)?FUNCTION\s+([\w.]+)/i;
		my $head = code_of($statement =~ s/\$\$.*\$\$//sr);

		if ($function && $head !~ /\bLANGUAGE\s+C\b/i)
		{
			like($head, qr/\bSET\s+search_path\s*=\s*pg_catalog,\s*pg_temp\b/i,
				"$function resolves names in pg_catalog alone");
		}
		if ($head =~ /\bSECURITY\s+DEFINER\b/i)
		{
			like($head, qr/\bSET\s+search_path\s*=\s*pg_catalog,\s*pg_temp\b/i,
				"$function, which has its owner's rights, pins its search_path");
		}

		# Views and anonymous blocks have no search_path of their own.
		my ($what) = $head =~ /\bCREATE\s+VIEW\s+([\w.]+)/i;
		$what = 'a DO block' if $statement =~ /^\s*(?:--[^\n]*\n\s*)*DO\b/;
		next if !$what;
		my $body = code_of($statement);
		$body =~ s/\bOPERATOR\s*\(\s*pg_catalog\.[^\s)]+\s*\)//g;
		$body =~ s/security_invoker\s*=\s*true//;
		$body =~ s/:=|=>|::|\.\*|\bcount\(\*\)//g;
		my @operators = $body =~ m{([^\n]*?[-+*/<>=~!@\#%^&|`?]+[^\n]*)}g;
		is_deeply(\@operators, [], "$what names the schema of every operator");
		my @casts = $body =~ /::(?!pg_catalog\.|es\.)\w+/g;
		is_deeply(\@casts, [], "$what names the schema of every type");
	}
}

my $control = slurp('es.control');
like($control, qr/^superuser = true$/m, 'only a superuser installs the extension');
like($control, qr/^trusted = false$/m, '... and nobody else is trusted to');
like($control, qr/^relocatable = false$/m, '... and it stays where it is');

done_testing();
