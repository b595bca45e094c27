# batch.pl
#	  Many events in one call.

use strict;
use warnings;

use Bench;

# A hundred payloads, each as a JSON text.
my @payloads = map { $payload =~ s/"amount": 7/"amount": $_/r } 1 .. 100;

# An array literal of texts.
sub array_of
{
	return '{' . join(',', map { '"' . s/(["\\])/\\$1/gr . '"' } @_) . '}';
}

row batch => 'es_append_batch() of 100 beside one INSERT of 100 rows by unnest', sub {
	my $calls = 0;
	my $events = '[' . join(',', map { qq({"type": "Deposited", "payload": $_}) } @payloads) . ']';
	my %arrays = (types => array_of(('Deposited') x 100), payloads => array_of(@payloads));

	database('plain', scripts => ['raw']);
	database('bare', es => 1);
	foreach my $clients (@{ $opt{clients} })
	{
		compare(
			title => 'es_append_batch of 100', setting => "$clients client" . ($clients > 1 ? 's' : ''),
			target => '>= 1.5', per => 'batches/s', warm_up => 1,
			base => sub { pgbench('plain', 'raw_batch', clients => $clients, vars => \%arrays) },
			ours => sub {
				pgbench('bare', 'append_batch', clients => $clients,
					vars => { events => $events }, count => \$calls);
			});
	}
	check_log('bare', 100 * $calls);
	drop_database($_) foreach 'plain', 'bare';
};

1;
