# hot.pl
#	  Everybody appends to one stream.

use strict;
use warnings;

use Bench;

row hot => 'one hot stream, 32 appenders, beside an INSERT with a row lock', sub {
	my $events = 0;

	database('plain', scripts => [ 'raw', 'peers' ]);
	database('bare', es => 1);
	foreach my $sync (@{ $opt{sync} })
	{
		compare(
			title => 'one hot stream',
			setting => '32 clients' . ($sync eq 'off' ? ', synchronous_commit off' : ''),
			target => '>= 0.9', per => 'events/s', warm_up => 1,
			base => sub { pgbench('plain', 'raw_hot', clients => 32, sync => $sync) },
			ours => sub {
				pgbench('bare', 'append', clients => 32, sync => $sync,
					vars => { streams => 1 }, count => \$events);
			});
	}
	check_log('bare', $events);
	drop_database($_) foreach 'plain', 'bare';
};

1;
