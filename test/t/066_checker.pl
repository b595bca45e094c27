#
# The checker of the fault matrix finds what it is to find: a log of operations and
# a state that agree pass, and each violation of an invariant is named.
#
use strict;
use warnings;
use EsChecker;
use JSON::PP;
use PostgreSQL::Test::Utils;
use Storable qw(dclone);
use Test::More;

my $json = JSON::PP->new->canonical;

# Three operations that went well, one that was rolled back, one unknown.
my @operations = (
	{ op => 'a', kind => 'append', parts => ['s'], status => 'ok', result => { got => [ [ 1, 1 ] ] } },
	{ op => 'b', kind => 'batch', parts => [ 's', 's' ], status => 'ok',
		result => { got => [ [ 2, 2 ], [ 3, 3 ] ] } },
	{ op => 'c', kind => 'wait', parts => ['t'], status => 'ok',
		result => { got => [ [ 4, 1 ] ], waited => 1, visible => 1 } },
	{ op => 'd', kind => 'rollback', parts => ['s'], status => 'failed' },
	{ op => 'e', kind => 'transaction', parts => [ 's', 't' ], status => 'unknown' },
	{ op => 'f', kind => 'stale', parts => ['s'], status => 'failed' });
my @readings = (
	{ epoch => '1/1', settled => 3, events => [ [ 1, 'a', 0 ], [ 2, 'b', 0 ], [ 3, 'b', 1 ] ] },
	{ epoch => '1/1', settled => 4, events => [ [ 4, 'c', 0 ] ] });
my $state = {
	from => 0, epoch => '1/1',
	events => [ [ 1, 's', 1, 'a', 0 ], [ 2, 's', 2, 'b', 0 ], [ 3, 's', 3, 'b', 1 ], [ 4, 't', 1, 'c', 0 ] ],
	ledger => [ [1], [2], [3], [4] ],
	tally => '4/10',
	sync_tally => { s => { n => 3, positions => 6 }, t => { n => 1, positions => 4 } },
	by_stream => { s => { version => 3 }, t => { version => 1 } } };

# Judge a copy of all that, after a change.
sub judge
{
	my ($change, %params) = @_;
	my ($o, $r, $s) = (dclone(\@operations), dclone(\@readings), dclone($state));
	my $dir = PostgreSQL::Test::Utils::tempdir;

	$change->($o, $r, $s);
	append_to_file("$dir/client.log", join('', map { $json->encode($_) . "\n" } @$o));
	append_to_file("$dir/reader.log", join('', map { $json->encode($_) . "\n" } @$r));
	return EsChecker->new($dir, $s, %params)->judge;
}

sub finds
{
	my ($pattern, $change, $what) = @_;
	my $verdict = judge($change);

	like(join("\n", @{ $verdict->{violations} }), $pattern, $what);
	return $verdict;
}

my $good = judge(sub { });
is_deeply($good->{violations}, [], 'what agrees is not objected to');
is("$good->{events} $good->{acknowledged} $good->{unknown} $good->{lost} $good->{repeated}", '4 3 1 0 0',
	'... and counted');

my $lost = finds(qr/append a was acknowledged, but only 0 parts/,
	sub { shift @{ $_[2]{events} }; $_[2]{events}[$_][2]-- foreach 0, 1 }, 'an acknowledged event is missing');
cmp_ok($lost->{lost}, '>', 0, '... and counted as lost');
finds(qr/rollback d failed, but is there/,
	sub { push @{ $_[2]{events} }, [ 5, 's', 4, 'd', 0 ] }, 'an event that was rolled back is there');
finds(qr/transaction e, whose end is unknown, 1 parts of 2/,
	sub { push @{ $_[2]{events} }, [ 5, 's', 4, 'e', 0 ] }, 'half of a transaction is there');
finds(qr/version 4 of s at 3 comes after 2/, sub { $_[2]{events}[2][2] = 4 }, 'a version is missing');
finds(qr/comes after/, sub { @{ $_[2]{events} }[ 1, 2 ] = @{ $_[2]{events} }[ 2, 1 ] },
	'positions do not agree with versions');
my $twice = finds(qr/part 0 of append a is there 2 times/,
	sub { push @{ $_[2]{events} }, [ 5, 's', 4, 'a', 0 ] }, 'one operation has two effects');
cmp_ok($twice->{repeated}, '>', 0, '... and counted as repeated');
finds(qr/told position 9 and version 1/, sub { $_[0][0]{result}{got}[0][0] = 9 }, 'a client was told another position');
finds(qr/though its expected version was stale/, sub { $_[0][5]{status} = 'ok' }, 'a stale version was accepted');
finds(qr/es_wait\(\) returned true, but the row was not visible/,
	sub { $_[0][2]{result}{visible} = 0 }, 'es_wait() promised what was not so');
finds(qr/settled position fell from 4 to 3/,
	sub { push @{ $_[1] }, { epoch => '1/1', settled => 3, events => [] } }, 'the settled position fell');
is_deeply(judge(sub {
		push @{ $_[1] }, { epoch => '1/2', settled => 3, events => [ map { [ $_->[0], @$_[ 3, 4 ] ] } @{ $_[2]{events} } ] };
		$_[2]{epoch} = '1/2' })->{violations}, [], '... which it may from one epoch to the next');
finds(qr/reader never got 2/, sub { splice @{ $_[1][0]{events} }, 1, 1 }, 'a reader missed an event');
finds(qr/reader got 2 after 4/, sub { push @{ $_[1][1]{events} }, [ 2, 'b', 0 ] }, 'an event appeared below');
finds(qr/reader got 5, which is not there/, sub { push @{ $_[1][1]{events} }, [ 5, 'x', 0 ] }, 'a reader saw a ghost');
finds(qr/reader saw 1 events of batch b at once/,
	sub { my $e = pop @{ $_[1][0]{events} }; unshift @{ $_[1][1]{events} }, $e }, 'a reader saw half a batch');
finds(qr/has applied 3 2 times/, sub { push @{ $_[2]{ledger} }, [3] }, 'a projection applied an event twice');
finds(qr/has not applied 3/, sub { splice @{ $_[2]{ledger} }, 2, 1 }, 'a projection missed an event');
finds(qr/has applied 7, which is not there/, sub { push @{ $_[2]{ledger} }, [7] }, 'a projection applied a ghost');
finds(qr/sum is 4\/11/, sub { $_[2]{tally} = '4/11' }, 'a sum differs');
finds(qr/synchronous projection differs for s/, sub { $_[2]{sync_tally}{s}{n} = 2 }, 'a synchronous projection differs');
finds(qr/ordered projection differs for t/, sub { $_[2]{by_stream}{t}{version} = 2 }, 'an ordered projection differs');
finds(qr/differ in a snapshot/, sub { push @{ $_[1] }, { snapshot => 'x' } }, 'a snapshot showed two states');
finds(qr/a client died/, sub { push @{ $_[1] }, { died => 'x' } }, 'a client died');

# After the loss of the newest, operations may be missing, but only as a whole.
my $drop_last = sub {
	my ($o, $r, $s) = @_;
	pop @{ $s->{events} }; pop @{ $s->{ledger} };
	delete $s->{sync_tally}{t}; delete $s->{by_stream}{t};
	$s->{tally} = '3/6'; $s->{epoch} = '1/2'; };
is_deeply(judge($drop_last, may_lose => 1)->{violations}, [], 'an asynchronous standby may lack the newest');
isnt(scalar @{ judge($drop_last)->{violations} }, 0, '... where that is not known it is a loss');

done_testing();
