# EsChecker.pm
#	  Judges, after the fact, what clients were told against what the log and the
#	  read models hold.
#
#	my $verdict = EsChecker->new($directory, $state, %params)->judge;
#
# The directory holds the files that EsFaults writes, the state is what the
# database held in the end.  Parameters:
#
#	may_lose	1: an asynchronous standby took over, or the state is that of an
#				earlier time: acknowledged events may be missing, but only from
#				the end on
#
# The verdict has counts and a list of violated invariants, each in words.

package EsChecker;

use strict;
use warnings;

use JSON::PP;

my $json = JSON::PP->new;

sub new
{
	my ($class, $directory, $state, %params) = @_;
	my %self = (
		state => $state, operations => {}, readings => [], violations => [],
		lost => 0, repeated => 0, %params);
	my $self = bless \%self, $class;

	foreach my $file (glob("$directory/*.log"))
	{
		$self->_read_log($file);
	}
	return $self;
}

sub _read_log
{
	my ($self, $file) = @_;

	open(my $log, '<', $file) or die "$file: $!";
	while (my $line = <$log>)
	{
		my $entry = $json->decode($line);

		# What was invoked and what became of it are one operation.
		if (defined $entry->{op})
		{
			my $known = $self->{operations}{ $entry->{op} } //= $entry;
			@{$known}{ keys %$entry } = values %$entry;
		}
		elsif (defined $entry->{epoch}) { push @{ $self->{readings} }, $entry; }
		elsif (defined $entry->{snapshot})
		{
			$self->_violated("checkpoint and read model differ in a snapshot: $entry->{snapshot}");
		}
		elsif (defined $entry->{died}) { $self->_violated("a client died: $entry->{died}"); }
	}
	close $log;
	return;
}

sub _violated
{
	my ($self, $what) = @_;

	push @{ $self->{violations} }, $what if @{ $self->{violations} } < 20;
	return;
}

sub judge
{
	my ($self) = @_;
	my $state = $self->{state};

	foreach my $event (@{ $state->{events} })
	{
		my ($position, $stream, $version, $op, $part) = @$event;
		push @{ $self->{by_op}{ $op // '' }{ $part // '' } }, $event;
	}
	$self->_judge_streams;
	$self->_judge_operations;
	$self->_judge_reader;
	$self->_judge_models;

	my @operations = values %{ $self->{operations} };
	return {
		events => scalar(grep { $_->[0] > $state->{from} } @{ $state->{events} }),
		acknowledged => scalar(grep { $_->{status} eq 'ok' } @operations),
		unknown => scalar(grep { $_->{status} =~ /^(unknown|invoked)$/ } @operations),
		lost => $self->{lost},
		repeated => $self->{repeated},
		violations => $self->{violations} };
}

# Versions are 1 to n without a gap, in the order of positions.
sub _judge_streams
{
	my ($self) = @_;
	my (%version, $last);

	foreach my $event (@{ $self->{state}{events} })
	{
		my ($position, $stream, $version) = @$event;

		$self->_violated("version $version of $stream at $position comes after " . ($version{$stream} // 0))
		  if $version != ($version{$stream} // 0) + 1;
		$self->_violated("position $position is there twice") if defined $last && $last == $position;
		$version{$stream} = $version;
		$last = $position;
	}
	return;
}

# What was acknowledged is there, what failed is not, and what is unknown is
# there as a whole or not at all.
sub _judge_operations
{
	my ($self) = @_;

	foreach my $op (values %{ $self->{operations} })
	{
		my $there = $self->{by_op}{ $op->{op} } // {};
		my $n = keys %$there;
		my $what = "$op->{kind} $op->{op}";
		my @parts = $self->_expected_parts($op, $there);

		foreach my $part (keys %$there)
		{
			next if @{ $there->{$part} } == 1;
			$self->{repeated}++;
			$self->_violated("part $part of $what is there " . @{ $there->{$part} } . ' times');
		}
		if ($op->{status} eq 'failed' || $op->{kind} eq 'rollback')
		{
			$self->_violated("$what failed, but is there") if $n > 0;
		}
		elsif ($op->{status} eq 'ok')
		{
			$self->_judge_acknowledged($op, $what, $there, @parts);
		}
		elsif ($n > 0 && $n != @parts)
		{
			$self->_violated("of $what, whose end is unknown, $n parts of " . @parts . ' are there');
		}
	}
	return;
}

# The parts that an operation has where it has an effect.
sub _expected_parts
{
	my ($self, $op, $there) = @_;

	return @{ $op->{result}{kept} } if $op->{result} && $op->{result}{kept};
	if ($op->{kind} eq 'subtransactions')
	{
		my @keep = @{ $op->{keep} };
		return map { $_ / 7 } grep { $_ % 7 == 0 && $keep[$_] } 0 .. $#keep;
	}
	return 0 .. $#{ $op->{parts} };
}

sub _judge_acknowledged
{
	my ($self, $op, $what, $there, @parts) = @_;
	my $n = keys %$there;

	if ($n < @parts)
	{
		# After the loss of the newest, whole operations may be missing.
		return if $self->{may_lose} && $n == 0;
		$self->{lost} += @parts - $n;
		$self->_violated("$what was acknowledged, but only $n parts of " . @parts . ' are there');
	}
	$self->_violated("$what was acknowledged though its expected version was stale")
	  if $op->{kind} eq 'stale';
	$self->_violated("$what: es_wait() returned true, but the row was not visible")
	  if $op->{result}{waited} && defined $op->{result}{visible} && !$op->{result}{visible};
	foreach my $part (0 .. $#{ $op->{result}{got} // [] })
	{
		my ($position, $version) = @{ $op->{result}{got}[$part] };
		my $event = $there->{$part}[0] or next;

		$self->_violated("$what was told position $position and version $version, but has @$event[0, 2]")
		  if $event->[0] != $position || $event->[2] != $version;
	}
	return;
}

# The settled position never falls within an epoch, whoever reads on from where
# it was gets every event once, and sees what was appended at once at once.
sub _judge_reader
{
	my ($self) = @_;
	my ($epoch, $settled, $after, %read, %whole) = ('', 0, 0);

	foreach my $reading (@{ $self->{readings} })
	{
		if ($reading->{epoch} ne $epoch)
		{
			($epoch, $settled, $after, %read) = ($reading->{epoch}, 0, 0);
		}
		$self->_violated("the settled position fell from $settled to $reading->{settled}")
		  if $reading->{settled} < $settled;
		$settled = $reading->{settled};
		%whole = ();
		foreach my $event (@{ $reading->{events} })
		{
			my ($position, $op) = @$event;

			$self->_violated("the reader got $position after $after") if $position <= $after;
			$after = $position;
			$read{$position} = 1;
			$whole{ $op // '' }++;
		}
		foreach my $op (keys %whole)
		{
			my $known = $self->{operations}{$op} or next;
			$self->_violated("the reader saw $whole{$op} events of $known->{kind} $op at once")
			  if $known->{kind} eq 'batch' && $whole{$op} != @{ $known->{parts} };
		}
	}
	foreach my $event (@{ $self->{state}{events} })
	{
		my $position = $event->[0];

		next if $position <= $self->{state}{from};
		if ($epoch eq $self->{state}{epoch} && !$read{$position})
		{
			$self->{lost}++;
			$self->_violated("the reader never got $position");
		}
		delete $read{$position};
	}
	$self->_violated("the reader got $_, which is not there")
	  foreach $epoch eq $self->{state}{epoch} ? sort keys %read : ();
	return;
}

# Each projection has applied each event once: what it holds is what it would
# compute from scratch.
sub _judge_models
{
	my ($self) = @_;
	my $state = $self->{state};
	my (%applied, %n, %positions, %version);
	my ($count, $sum) = (0, 0);

	$applied{ $_->[0] }++ foreach @{ $state->{ledger} };
	foreach my $event (@{ $state->{events} })
	{
		my ($position, $stream, $version) = @$event;
		my $times = delete $applied{$position} // 0;

		if ($times == 0)
		{
			$self->{lost}++;
			$self->_violated("the projection has not applied $position");
		}
		elsif ($times > 1)
		{
			$self->{repeated}++;
			$self->_violated("the projection has applied $position $times times");
		}
		$count++;
		$sum += $position;
		$n{$stream}++;
		$positions{$stream} += $position;
		$version{$stream} = $version;
	}
	$self->_violated("the projection has applied $_, which is not there") foreach sort keys %applied;
	$self->_violated("the sum is $state->{tally} instead of $count/$sum") if $state->{tally} ne "$count/$sum";
	foreach my $stream (sort keys %n)
	{
		my $tally = $state->{sync_tally}{$stream};
		my $last = $state->{by_stream}{$stream};

		$self->_violated("the synchronous projection differs for $stream")
		  if !$tally || $tally->{n} != $n{$stream} || $tally->{positions} != $positions{$stream};
		$self->_violated("the ordered projection differs for $stream")
		  if !$last || $last->{version} != $version{$stream};
	}
	return;
}

1;
