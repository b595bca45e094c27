# decide.pl
#	  Contended decisions: everybody withdraws from one account.  In the server,
#	  es_submit() with a decider; in application style, each client keeps the
#	  state it knows, reads what has come since, decides, appends if the stream
#	  still is at that version, and begins again where it is not.

use strict;
use warnings;

use Bench;

row decide => 'contended decisions on one stream, beside read, decide, append and retry', sub {
	foreach my $sync ('off', grep { $_ ne 'off' } @{ $opt{sync} })
	{
		database('decided', es => 1, scripts => ['decide']);
		database('application', es => 1, scripts => ['decide']);
		my ($decided, $applied, $again) = (0, 0, 0);

		my $values = rounds([
			[ application => sub {
				pgbench('application', 'decide_application', clients => 16, sync => $sync,
					retry => 1, vars => { version => 0, balance => 0 },
					count => \$applied, retries => \$again);
			} ],
			[ ours => sub {
				pgbench('decided', 'decide', clients => 16, sync => $sync, count => \$decided);
			} ] ], warm_up => 1, target => $sync eq 'off');
		my %figure = (ours => $values->{ours}, per => 'decisions/s',
			setting => '16 clients, one stream, synchronous_commit ' . $sync);

		figure(%figure, title => 'contended decisions', base => $values->{application},
			target => $sync eq 'off' ? '>= 1' : undef);
		figure(%figure, title => 'the same, beside 5,000 a second', target => '>= 1',
			base => [ map { 5000 } @{ $values->{ours} } ]) if $sync eq 'off';
		note(sprintf 'contended decisions, synchronous_commit %s: the application began %.1f times for each that it brought to an end; in the server nobody begins twice.',
			$sync, 1 + $again / $applied) if $applied;
		check("the account's balance is what was decided",
			value('decided', q{SELECT es_state('account-1')->>'balance'}) == 1_000_000_000 - $decided);
		check("the application's balance is what was decided",
			value('application', q{SELECT es_state('account-1')->>'balance'}) == 1_000_000_000 - $applied);
		drop_database($_) foreach 'decided', 'application';
	}
};

1;
