# append.pl
#	  Appending one event at a time, beside a bare INSERT of the same row, with
#	  what else writes events in a PostgreSQL.

use strict;
use warnings;

use Bench;

my $projections = q{
	SELECT es_create_projection('balance', $$
		INSERT INTO balance SELECT stream, sum((payload->>'amount')::bigint)
		  FROM es_batch GROUP BY stream
		ON CONFLICT (stream) DO UPDATE SET amount = balance.amount + excluded.amount$$);
	SELECT es_create_projection('daily', $$
		INSERT INTO daily SELECT category, recorded_at::date, count(*), sum((payload->>'amount')::bigint)
		  FROM es_batch GROUP BY 1, 2
		ON CONFLICT (category, day) DO UPDATE
		SET events = daily.events + excluded.events, amount = daily.amount + excluded.amount$$);
};
my %appended;		# events by database, to compare with its log

sub fill_log
{
	my ($name, $prefill) = @_;

	database($name, es => 1, scripts => ['es']);
	load_events($name, $prefill) if $prefill;
	$appended{$name} = $prefill;
	return;
}

# A log without consumers, one with two projections, and one for commands, so
# that each is as large as the table that it stands beside; and that table.
sub make_logs
{
	my ($prefill) = @_;

	%appended = ();
	fill_log($_, $prefill) foreach 'bare', 'projected', 'commands';
	sql('projected', $projections);
	sql('projected', 'SELECT es_wait(name, es_settled(), \'5 min\') FROM es.projection');
	return;
}

# The yardstick, with as many rows as the logs begin with.
sub fill_raw
{
	my ($n) = @_;

	sql('plain', qq{
		INSERT INTO raw (version, stream, category, type, payload)
		SELECT -n, 'account-' || ceil(random() * $opt{streams})::int, 'account', 'Deposited', '$payload'
		  FROM generate_series(1, $n) n;
		VACUUM ANALYZE raw});
	return;
}

sub make_peers
{
	database('plain', scripts => [ 'raw', 'peers' ]);
	return if !$ENV{BENCH_MESSAGE_DB};

	drop_database('message_store');
	local $ENV{PGOPTIONS} = '-c client_min_messages=warning';
	system("$ENV{BENCH_MESSAGE_DB}/install.sh >/dev/null 2>&1") == 0
	  or die "message-db cannot be installed";

	# The schema is found by its search_path.
	sql('message_store',
		'ALTER DATABASE message_store SET search_path = message_store, public');
	return;
}

# A contestant: a script run in a database.
sub load
{
	my ($database, $script, $clients, $sync, %vars) = @_;

	return sub {
		return pgbench($database, $script, clients => $clients, sync => $sync,
			vars => \%vars, count => \$appended{$database});
	};
}

# The same while ten sessions listen.
sub with_listeners
{
	my ($database, $channel, $load, $after) = @_;

	return sub {
		my $listeners = start($database, "$ENV{BENCH_TOOLS}/client", 'listen', $channel, 10);
		my $tps = $load->();

		stop($listeners);
		return $tps;
	};
}

# The projections have done their work before anybody else's turn.
sub and_caught_up
{
	my ($load) = @_;

	return sub {
		my $tps = $load->();

		sql('projected', "SELECT es_wait(name, es_settled(), '5 min') FROM es.projection");
		return $tps;
	};
}

sub finish
{
	my ($database) = @_;

	check_log($_, $appended{$_}) foreach sort grep { $_ ne 'plain' && $_ ne 'message_store' } keys %appended;
	drop_database($_) foreach 'bare', 'projected', 'commands', 'plain', 'message_store';
	return;
}

# Let contestants beside a base take turns under one setting, and take the
# ratios into the table.  Each is [title, target, code].
sub measure
{
	my ($setting, $base, @others) = @_;
	my $values = rounds([ [ base => $base ], map { [ $_->[0], $_->[2] ] } @others ],
		warm_up => 1, target => (grep { $_->[1] } @others) > 0);

	foreach my $other (@others)
	{
		figure(title => $other->[0], setting => $setting, per => 'events/s',
			target => $other->[1], ours => $values->{ $other->[0] }, base => $values->{base});
	}
	return;
}

# Code for each setting: clients times synchronous_commit.
sub each_setting
{
	my ($code) = @_;

	foreach my $sync (@{ $opt{sync} })
	{
		foreach my $clients (@{ $opt{clients} })
		{
			my $setting = "$clients client" . ($clients > 1 ? 's' : '')
			  . ($sync eq 'off' ? ', synchronous_commit off' : '');

			print STDERR "  $setting\n";
			$code->($setting, $clients, $sync);
		}
	}
	return;
}

row append => 'es_append() and es_submit() beside a bare INSERT', sub {
	database('plain', scripts => [ 'raw', 'peers' ]);
	make_logs($opt{streams});
	fill_raw($opt{streams});
	each_setting(sub {
		my ($setting, $clients, $sync) = @_;

		measure($setting, load('plain', 'raw', $clients, $sync),
			[ 'es_append', '>= 1.0', load('bare', 'append', $clients, $sync) ],
			[ 'es_append, 10 listeners, 2 projections', '>= 0.9',
				and_caught_up(with_listeners('projected', 'es', load('projected', 'append', $clients, $sync))) ],
			[ 'es_submit, validator in SQL', '>= 0.75',
				load('commands', 'submit_sql', $clients, $sync) ],
			[ 'es_submit, validator in PL/pgSQL', '>= 0.75',
				load('commands', 'submit_plpgsql', $clients, $sync) ]);
	});
	finish();
};

row listeners => 'appending while ten sessions listen, beside the same while nobody does', sub {
	database('plain', scripts => ['raw']);
	%appended = ();
	fill_log('bare', $opt{streams});
	foreach my $sync (@{ $opt{sync} })
	{
		my $setting = '32 clients' . ($sync eq 'off' ? ', synchronous_commit off' : '');
		my $append = load('bare', 'append', 32, $sync);

		measure($setting, $append,
			[ 'es_append, 10 listeners', '>= 0.95', with_listeners('bare', 'es', $append) ]);
		measure($setting, load('plain', 'raw', 32, $sync),
			[ 'INSERT and NOTIFY, 10 listeners', undef,
				with_listeners('plain', 'raw', load('plain', 'notify', 32, $sync)) ]);
	}
	finish();
};

row peers => 'other ways to write events beside a bare INSERT', sub {
	%appended = ();
	make_peers();
	each_setting(sub {
		my ($setting, $clients, $sync) = @_;
		my $notify = load('plain', 'notify', $clients, $sync);
		my @message_db = $ENV{BENCH_MESSAGE_DB}
		  ? ([ 'message-db, one category', undef,
				load('message_store', 'message_db', $clients, $sync) ],
			[ 'message-db, many categories', undef,
				load('message_store', 'message_db_many', $clients, $sync) ]) : ();

		measure($setting, load('plain', 'raw', $clients, $sync),
			[ 'INSERT and NOTIFY', undef, $notify ],
			[ 'INSERT and NOTIFY, 10 listeners', undef, with_listeners('plain', 'raw', $notify) ],
			@message_db,
			[ 'order by xid8', undef, load('plain', 'xid8', $clients, $sync) ],
			[ 'order by xid8, and NOTIFY', undef, load('plain', 'xid8_notify', $clients, $sync) ],
			[ 'row trigger, many rows', undef, load('plain', 'trigger', $clients, $sync) ],
			[ 'row trigger, one hot row', undef,
				load('plain', 'trigger', $clients, $sync, streams => 1) ],
			[ 'global lock', undef, load('plain', 'global_lock', $clients, $sync) ]);
	});
	finish();
};

row 'slow-flush' => 'a disk that takes 1 ms to flush, one category, 32 clients', sub {
	make_peers();
	make_logs($opt{streams});
	fill_raw($opt{streams});
	restart_server("$ENV{BENCH_TOOLS}/slowflush.so");

	my $notify = load('plain', 'notify', 32, 'on');
	measure('32 clients, a flush of 1 ms', load('plain', 'raw', 32, 'on'),
		[ 'es_append, 10 listeners, 2 projections', '>= 0.95',
			and_caught_up(with_listeners('projected', 'es', load('projected', 'append', 32, 'on'))) ],
		[ 'es_append', '>= 0.95', load('bare', 'append', 32, 'on') ],
		[ 'INSERT and NOTIFY', undef, $notify ],
		$ENV{BENCH_MESSAGE_DB}
		? ([ 'message-db, one category', undef, load('message_store', 'message_db', 32, 'on') ],
			[ 'message-db, many categories', undef,
				load('message_store', 'message_db_many', 32, 'on') ]) : (),
		[ 'order by xid8, and NOTIFY', undef, load('plain', 'xid8_notify', 32, 'on') ],
		[ 'global lock', undef, load('plain', 'global_lock', 32, 'on') ],
		[ 'row trigger, one hot row', undef, load('plain', 'trigger', 32, 'on', streams => 1) ]);
	finish();
	restart_server();
};

1;
