#
# Random JSON for all that takes JSON: lists of events, conditions, payloads.  What
# is refused is refused with an error that says why, and leaves nothing behind;
# what is taken is stored as it was given.
#
#	ES_FUZZ_SEED	what is tried follows from it (default: 1)
#	ES_FUZZ_SECONDS	for how long (default: 8)
#
use strict;
use warnings;
use EsClient;
use EsNode;
use JSON::PP;
use Test::More;
use Time::HiRes qw(time);

my $seed = $ENV{ES_FUZZ_SEED} // 1;
my $seconds = $ENV{ES_FUZZ_SECONDS} // 8;
my $json = JSON::PP->new->canonical->allow_nonref;

srand($seed);
note("seed $seed");

my $node = EsNode->create('main');
$node->safe_psql('postgres', q{
	CREATE DOMAIN positive AS numeric NOT NULL CHECK (VALUE > 0);
	CREATE TYPE item AS (name text, n integer);
	CREATE TYPE booking AS (amount positive, items item[], at timestamptz, ok boolean);
	SELECT es_create_command('BOOK', 'account', 'BOOKED', payload_type => 'booking');
	SELECT es_create_command('NOTE', 'account', 'NOTED')});
my $session = EsClient->connect($node, 'postgres');

my @strings = (
	'', 'a', 'account-1', 'type', 'payload', 'metadata', 'tags', "\0", "\x{e9}", "\x{1F600}", "\t\n\"\\", ' ',
	'x' x 512, 'x' x 513, "\x{e9}" x 256, "\x{e9}" x 257, '%s%n%d', "'; DROP TABLE es.event; --", '-', '-1',
	'1e400', 'null', '{}', 'NaN', '2023-01-01', "\x{feff}");
my @numbers = (0, 1, -1, 9223372036854775807, 9223372036854775808, 1e308, 1e-300, 0.1, 3, 2147483648);

sub pick { return $_[ int(rand(@_)) ]; }

# Some JSON, deeper or shallower.
sub value
{
	my ($depth) = @_;
	my $kind = int(rand($depth > 0 ? 8 : 5));

	return pick(@strings) if $kind <= 1;
	return pick(@numbers) + 0 if $kind == 2;
	return pick(JSON::PP::true, JSON::PP::false) if $kind == 3;
	return undef if $kind == 4;
	return [ map { value($depth - 1) } 1 .. int(rand(4)) ] if $kind == 5;
	return { map { pick(@strings) => value($depth - 1) } 1 .. int(rand(4)) };
}

# Something like what is asked for, with a fault now and then.
sub event
{
	my %event = (type => 'T' . int(rand(5)));

	$event{payload} = { a => value(2) } if rand() < 0.5;
	$event{metadata} = { m => value(1) } if rand() < 0.3;
	$event{tags} = [ map { 't' . int(rand(9)) } 1 .. int(rand(4)) ] if rand() < 0.3;
	return rand() < 0.8 ? \%event : mutate(\%event);
}

sub mutate
{
	my ($value) = @_;
	my %copy = %$value;
	my $key = pick(keys %copy, @strings);

	return value(2) if rand() < 0.1;
	delete $copy{$key} if rand() < 0.3;
	$copy{$key} = value(2) if rand() < 0.7;
	return \%copy;
}

sub events
{
	my $r = rand();

	return value(3) if $r < 0.1;
	return [ map { event() } 1 .. pick(1, 1, 2, 3, 5, 300) ];
}

# Events with a stream each, as es_append_if() takes them.
sub streamed
{
	my ($list) = @_;

	return $list if ref $list ne 'ARRAY';
	return [ map { ref $_ eq 'HASH' ? { %$_, stream => pick('account-1', 'x-2', @strings) } : $_ } @$list ];
}

sub criterion
{
	my %criterion;

	$criterion{types} = [ map { 'T' . int(rand(5)) } 1 .. 2 ] if rand() < 0.7;
	$criterion{tags} = [ map { 't' . int(rand(9)) } 1 .. 2 ] if rand() < 0.7;
	return rand() < 0.7 ? \%criterion : mutate(\%criterion);
}

sub condition
{
	return value(3) if rand() < 0.15;
	return [ map { criterion() } 1 .. 2 ] if rand() < 0.3;
	my %condition = (items => [ map { criterion() } 1 .. 1 + int(rand(2)) ]);
	return rand() < 0.7 ? \%condition : mutate(\%condition);
}

sub booking
{
	my %booking = (amount => pick(@numbers, '3.5'), items => [ { name => 'n', n => 1 } ], ok => JSON::PP::true);

	$booking{at} = pick('now', '2023-01-01', 'never');
	return rand() < 0.3 ? \%booking : mutate(\%booking);
}

# Raw text, that is sometimes no JSON at all.
sub text
{
	my ($value) = @_;
	my $text = $json->encode($value);

	return $text if rand() < 0.9;
	return pick(
		substr($text, 0, int(rand(length $text))), '[' x 5000, '{"a":' x 3000,
		$text . pick('}', ']', ',', "\x{1}"), '[' . join(',', ('{}') x 3000) . ']');
}

# What is there to be called.
my @targets = (
	[ es_append_batch => 'SELECT * FROM es_append_batch($2, $1::jsonb)', sub { text(events()) } ],
	[ es_append => q{SELECT * FROM es_append($2, 'E', $1::jsonb)}, sub { text(value(3)) } ],
	[ es_append => q{SELECT * FROM es_append($2, 'E', '{}', NULL, $1::jsonb)}, sub { text(value(3)) } ],
	[ es_append => q{SELECT * FROM es_append($2, $1::text)}, sub { pick(@strings) } ],
	[ es_append => q{SELECT * FROM es_append($1::text, $2)}, sub { pick(@strings) } ],
	[ es_submit => q{SELECT * FROM es_submit('BOOK', $2, $1::jsonb)}, sub { text(booking()) } ],
	[ es_submit => q{SELECT * FROM es_submit('NOTE', $2, $1::jsonb)}, sub { text(value(3)) } ],
	[ es_submit => q{SELECT * FROM es_submit($1::text, $2)}, sub { pick(@strings) } ],
	[ es_read_matching => 'SELECT count(*) FROM es_read_matching($1::jsonb) WHERE $2::text IS NOT NULL',
		sub { text(condition()) } ],
	[ es_append_if => q{SELECT * FROM es_append_if(
		jsonb_build_array(jsonb_build_object('stream', $2::text, 'type', 'T1')), $1::jsonb)},
		sub { text(condition()) } ],
	[ es_append_if => q{SELECT * FROM es_append_if($1::jsonb, '{"items": [{"tags": ["none"]}]}')
		WHERE $2::text IS NOT NULL}, sub { text(rand() < 0.5 ? events() : streamed(events())) } ]);

my ($accepted, $refused, %states, @strange) = (0, 0);
my $deadline = time + $seconds;

while (time < $deadline)
{
	my $target = pick(@targets);
	my $input = $target->[2]->();
	my $where = pick('account-1', 'account-2', 'order-' . int(rand(20)));
	my ($before) = $session->selectrow_array('SELECT count(*) FROM es.event');
	my $ok = eval { $session->selectrow_array($target->[1], undef, $input, $where); 1 };
	my $state = $ok ? 'ok' : $session->state;
	my $message = $@;

	$ok ? $accepted++ : $refused++;
	$states{$state}++;
	next if $ok;

	# Refusals say so in the classes that are for it.
	push @strange, "$state: $message for $target->[1] with " . substr($input, 0, 200)
	  if $state !~ /^(?:22|23|42|54|0A|ES)/;
	if (!$session->ping)
	{
		push @strange, 'the connection is lost';
		last;
	}
	my ($after) = $session->selectrow_array('SELECT count(*) FROM es.event');
	push @strange, "refused, but appended: $target->[1] with " . substr($input, 0, 200) if $after != $before;
}
note(join(', ', map { "$_: $states{$_}" } sort keys %states));
cmp_ok($accepted, '>', 10, 'some input is taken');
cmp_ok($refused, '>', 10, 'some is refused');
is_deeply(\@strange, [], 'what is refused says why, and appends nothing')
  or diag(join("\n", @strange[ 0 .. ($#strange > 5 ? 5 : $#strange) ]));

# What was taken is stored as it was given.
my @different;
foreach my $round (1 .. 200)
{
	my $payload = { map { pick(grep { !/\0/ } @strings) => value(2) } 1 .. 3 };
	my $text = $json->encode($payload);

	next if $text =~ /\\u0000/;
	my $same = eval {
		$session->selectrow_array(q{
			WITH a AS (SELECT "position" FROM es_append('same-1', 'E', ?::jsonb))
			SELECT "position" FROM a}, undef, $text);
		$session->selectrow_array(q{
			SELECT payload = ?::jsonb FROM es_stream('same-1') ORDER BY version DESC LIMIT 1}, undef, $text);
	};
	push @different, $text if !$same;
}
is_deeply(\@different, [], 'a payload is stored as it was given');
is($node->safe_psql('postgres', q{
	SELECT count(*) FROM (SELECT FROM es.event GROUP BY stream
		HAVING count(*) <> max(version) OR min(version) <> 1) s}), '0', 'no stream has a gap');
ok(!$node->log_has(qr/terminated by signal|PANIC|XX000/), 'the server has not crashed');
$session->disconnect;
$node->stop;
done_testing();
