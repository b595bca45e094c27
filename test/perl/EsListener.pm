# EsListener.pm
#	  A session that listens: psql in the background.
#
#	my $listener = EsListener->new($node, 'postgres', 'es', 'orders');
#	$listener->run('SELECT ...');		# in the same session
#	$listener->wait_for(qr/"orders" with payload/);
#	my @messages = $listener->messages('orders');
#	$listener->finish;

package EsListener;

use strict;
use warnings;

use IPC::Run;
use PostgreSQL::Test::Utils;
use Time::HiRes qw(usleep time);

sub new
{
	my ($class, $node, $database, @channels) = @_;
	my $self = bless { in => '', out => '', round => 0 }, $class;

	$self->{run} = IPC::Run::start(
		[ 'psql', '-XAtq', '-d', $node->connstr($database) ],
		'<', \$self->{in}, '>', \$self->{out}, '2>&1');
	$self->run(join('', map { "LISTEN \"$_\";\n" } @channels));
	return $self;
}

# Run SQL in the session and return what it prints, notifications included.
sub run
{
	my ($self, $sql) = @_;
	my $before = length($self->{out});
	my $mark = 'done ' . ++$self->{round};

	$self->{in} .= "$sql;\n\\echo $mark\n";
	$self->{run}->pump until $self->{out} =~ s/^\Q$mark\E\n//m;
	return substr($self->{out}, $before);
}

# Wait until what was printed matches; dies where that takes too long.
sub wait_for
{
	my ($self, $pattern) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	until ($self->{out} =~ $pattern)
	{
		die "not heard: $pattern in:\n$self->{out}" if time > $deadline;
		usleep(20_000);
		$self->run('SELECT');
	}
	return 1;
}

# The payloads heard on a channel, all or those since forget().
sub messages
{
	my ($self, $channel) = @_;

	return $self->{out} =~ /^Asynchronous notification "\Q$channel\E" with payload "(.*)" received/mg;
}

sub forget
{
	my ($self) = @_;

	$self->{out} = '';
	return;
}

sub finish
{
	my ($self) = @_;

	$self->{in} .= "\\q\n";
	$self->{run}->finish;
	return;
}

1;
