# EsNode.pm
#	  A PostgreSQL::Test::Cluster that has es loaded and created.
#
#	use EsNode;
#	my $node = EsNode->create('main', conf => "es.batch_size = 10");
#	$node->safe_psql('postgres', ...);
#	$node->wait_caught_up('postgres', 'balance');
#
# Everything that PostgreSQL::Test::Cluster offers works on it, psql,
# background_psql, pgbench, kill9, init_from_backup and so on.
#
# ES_DESTDIR names the prefix under which es was installed (make install
# DESTDIR=...); without it the server's own directories are taken.

package EsNode;

use strict;
use warnings;

use parent 'PostgreSQL::Test::Cluster';

use PostgreSQL::Test::Utils qw(run_command slurp_file);
use Time::HiRes qw(usleep time);

# Seconds to wait for what has to happen, as PostgreSQL's own tests have it.
our $patience = $PostgreSQL::Test::Utils::timeout_default;

# Make a node, start it and create the extension in the database postgres.
#
#	conf		lines for postgresql.conf
#	start		0: do not start it
#	extension	0: do not create the extension
#
# and whatever PostgreSQL::Test::Cluster's new() and init() take, such as
# allows_streaming => 1.
sub create
{
	my ($class, $name, %params) = @_;
	my $node = $class->new($name, %params);

	$node->init(%params);
	$node->append_conf('postgresql.conf', es_conf());
	$node->append_conf('postgresql.conf', $params{conf}) if $params{conf};
	return $node if !($params{start} // 1);

	$node->start;
	$node->safe_psql('postgres', 'CREATE EXTENSION es')
	  if $params{extension} // 1;
	return $node;
}

# The lines of postgresql.conf that load es.
sub es_conf
{
	my $conf = "shared_preload_libraries = 'es'\nmax_worker_processes = 16\n";

	if (my $prefix = $ENV{ES_DESTDIR})
	{
		my ($libdir) = run_command([ 'pg_config', '--pkglibdir' ]);

		$conf .= "extension_destdir = '$prefix'\n"
		  . "dynamic_library_path = '$prefix$libdir:$libdir'\n";
	}
	return $conf;
}

# Wait until a projection has applied all that is committed now.  False, after
# $patience seconds, if it has not.
sub wait_caught_up
{
	my ($node, $database, $projection) = @_;

	return $node->safe_psql($database, qq{
		SELECT es_wait('$projection',
			(SELECT coalesce(max("position"), 0) FROM es.event),
			'$patience s')}) eq 't';
}

# The process id of an es process: 'launcher', or 'scheduler' or 'projector' (of
# a role, if given) of a database, waiting until there is one.  In list context
# all that there are, in the order of their start.
sub worker_pid
{
	my ($node, $kind, $database, $role) = @_;
	my $query = "SELECT pid FROM es_stat_workers WHERE kind LIKE '%$kind'";
	my $deadline = time + $patience;
	my @pids;

	$query .= " AND role = '$role'" if defined $role;
	$query .= " ORDER BY started_at";

	until (@pids = split /\n/, $node->safe_psql($database // 'postgres', $query))
	{
		die "no es $kind has started" if time > $deadline;
		usleep(50_000);
	}
	return wantarray ? @pids : $pids[0];
}

# Wait until no process with this id is left.
sub wait_gone
{
	my ($node, $pid) = @_;
	my $deadline = time + $patience;

	while (kill 0, $pid)
	{
		die "process $pid has not ended" if time > $deadline;
		usleep(10_000);
	}
	return;
}

# Kill the server with no chance to do anything, and wait until it can be started
# again: its processes are gone, and with them its shared memory.
sub crash
{
	my ($node) = @_;
	my $postmaster = $node->{_pid};
	my @children = grep {
		-r "/proc/$_/stat"
		  && slurp_file("/proc/$_/stat") =~ /\) \S $postmaster /
	} map { m{^/proc/(\d+)$} } glob('/proc/[0-9]*');

	$node->kill9;
	$node->wait_gone($_) for ($postmaster, @children);
	return;
}

# Where the server's log ends: give it to log_has() to look at what follows.
sub log_end
{
	my ($node) = @_;

	return -s $node->logfile // 0;
}

# Whether the server's log has a match of the pattern, after an offset if given.
sub log_has
{
	my ($node, $pattern, $offset) = @_;

	return slurp_file($node->logfile, $offset // 0) =~ $pattern;
}

1;
