# EsExample.pm
#	  The example clients of test/clients, built and run.

package EsExample;

use strict;
use warnings;

use IPC::Run;
use POSIX ();
use PostgreSQL::Test::Utils;
use Time::HiRes qw(usleep time);

# Build a client and return its path, which is this test's own: another one may
# be running the same client.
sub build
{
	my ($name) = @_;
	my $path = PostgreSQL::Test::Utils::tempdir($name) . "/$name";
	my ($includedir) = run_command([ 'pg_config', '--includedir' ]);
	my ($libdir) = run_command([ 'pg_config', '--libdir' ]);

	system_or_bail('gcc', '-Wall', '-Wextra', '-Werror', '-O2',
		"-I$includedir", "-L$libdir", '-o', $path, "test/clients/$name.c", '-lpq');
	return $path;
}

# Start a program in the background; what it prints is appended to a file.
# Returns its process id.
sub start
{
	my ($output, @command) = @_;
	my $pid = fork // die "fork: $!";

	return $pid if $pid;
	# Not by die, after which the END blocks would stop our servers.
	open(STDOUT, '>>', $output)
	  and open(STDERR, '>&', \*STDOUT)
	  and exec(@command);
	print STDERR "$command[0]: $!\n";
	POSIX::_exit(127);
}

# End a program with a signal, and wait for it.
sub end
{
	my ($pid, $signal) = @_;

	kill($signal // 'TERM', $pid);
	waitpid($pid, 0);
	return;
}

# Wait until a program ends by itself: its exit status, or undef after too long.
sub wait_for_end
{
	my ($pid) = @_;
	my $deadline = time + $PostgreSQL::Test::Utils::timeout_default;

	while (time < $deadline)
	{
		my $ended = waitpid($pid, POSIX::WNOHANG());

		return $? >> 8 if $ended == $pid;
		usleep(20_000);
	}
	return;
}

1;
