# EsClient.pm
#	  A session of a client with the server, through DBI.
#
#	use EsClient;
#	my $session = EsClient->connect($node, 'postgres');
#	my ($position) = $session->selectrow_array(...);
#
# Errors are exceptions; $session->state has the SQLSTATE.

package EsClient;

use strict;
use warnings;

use DBI;

# Connect as a role (postgres or whoever runs the test, if none is given).
# Returns the DBI handle; undef, with the reason in $DBI::errstr, if the server
# refuses and may_fail is set.
sub connect
{
	my ($class, $node, $database, %params) = @_;
	my $dsn = sprintf("dbi:Pg:host=%s;port=%d;dbname=%s", $node->host, $node->port, $database);

	$dsn .= ";options=$params{options}" if $params{options};
	my $session = DBI->connect(
		$dsn,
		$params{user} // scalar(getpwuid($>)),
		'',
		{   RaiseError => !$params{may_fail},
			PrintError => 0,
			PrintWarn => 0,
			AutoCommit => 1,
			AutoInactiveDestroy => 1,
			pg_server_prepare => $params{prepare} // 1 });
	return if !$session;
	$session->{RaiseError} = 1;
	$session->{private_es_where} = [ $node, $database ];
	return $session;
}

1;
