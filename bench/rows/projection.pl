# projection.pl
#	  Folding events into read models, beside the same SQL done by hand.

use strict;
use warnings;

use Bench;

my %upsert = (
	balance => q{INSERT INTO balance SELECT stream, sum((payload->>'amount')::bigint)
		FROM %s GROUP BY stream
		ON CONFLICT (stream) DO UPDATE SET amount = balance.amount + excluded.amount},
	daily => q{INSERT INTO daily SELECT category, recorded_at::date, count(*), sum((payload->>'amount')::bigint)
		FROM %s GROUP BY 1, 2
		ON CONFLICT (category, day) DO UPDATE
		SET events = daily.events + excluded.events, amount = daily.amount + excluded.amount});

# A log to project, made once for all rows of this file.
my $events;

sub make_log
{
	return if defined $events;
	database('log', es => 1, scripts => ['es']);
	load_events('log', $opt{events});
	keep_projector('log');
	$events = value('log', 'SELECT count(*) FROM es.event');
	return;
}

# Wait until a projection is done.  By looking and not by es_wait(): a statement
# that runs all the time holds a snapshot, and no version of a row that was
# updated since could be reused, which nothing by hand has to bear.
sub finished
{
	my ($name) = @_;

	sql('log', qq{DO \$\$
		BEGIN
			WHILE (SELECT status <> 'caught up' FROM es_projections WHERE name = '$name') LOOP
				COMMIT;
				PERFORM pg_sleep(0.002);
			END LOOP;
		END \$\$});
	return;
}

# Events a second of a projection that catches up, from its creation to its end.
sub catch_up
{
	my ($name, $options, $query) = @_;

	$query //= sprintf $upsert{$name}, 'es_batch';
	return sub {
		drop_projections('log');
		sql('log', "TRUNCATE $name");
		my $seconds = seconds_of(sub {
			sql('log', "SELECT es_create_projection('$name', \$q\$$query\$q\$$options)");
			finished($name);
		});
		my $count = value('log', "SELECT sum(events_applied) FROM es_projections");

		check("$name has applied $count of $events events", $count == $events);
		return $events / $seconds;
	};
}

# Events a second of statements over slices of the log, with a commit each as
# the worker does it.  %s stands for the slice.
sub by_hand
{
	my ($name, $statement, $slice) = @_;
	my $query = sprintf $statement,
	  '(SELECT * FROM es.event WHERE "position" > a AND "position" <= a + ' . $slice . ') e';

	return sub {
		sql('log', "TRUNCATE $name");
		local $ENV{PGOPTIONS} = '-c synchronous_commit=off';
		return $events / seconds_of(sub {
			sql('log', qq{DO \$do\$
				DECLARE
					a bigint := 0;
					n bigint := (SELECT max("position") FROM es.event);
				BEGIN
					WHILE a < n LOOP
						$query;
						COMMIT;
						a := a + $slice;
					END LOOP;
				END \$do\$});
		});
	};
}

row 'catch-up' => 'a projection over many rows catches up, beside the upsert by hand', sub {
	make_log();
	compare(
		title => "catch-up, $opt{streams} rows", setting => "$events events",
		target => '>= 0.95', per => 'events/s',
		base => by_hand('balance', $upsert{balance}, 10_000),
		ours => catch_up('balance', ''));
	check_log('log', $events);
};

row partitions => 'two partitions beside one', sub {
	make_log();
	return note("partitions: this build has one ($@)")
	  if !try_sql('log', "BEGIN; SELECT es_create_projection('p', 'SELECT 1 FROM es_batch', partitions => 2); ROLLBACK");
	compare(
		title => 'two partitions', setting => "$events events, $opt{streams} rows",
		target => '>= 1.5', per => 'events/s',
		base => catch_up('balance', ''),
		ours => catch_up('balance', ', partitions => 2'));
	check_log('log', $events);
};

row rebuild => 'es_rebuild() beside one INSERT ... SELECT over the whole log', sub {
	make_log();
	return note('es_rebuild: not in this build') if !has('log', 'es_rebuild');
	catch_up('balance', ", tables => '{balance}'")->();
	sql('log', 'CREATE TABLE by_hand (LIKE balance INCLUDING ALL)');
	compare(
		title => 'es_rebuild', setting => "$events events, $opt{streams} rows",
		target => '>= 0.8', per => 'events/s',
		base => sub {
			sql('log', 'TRUNCATE by_hand');
			return $events / seconds_of(sub {
				sql('log', q{INSERT INTO by_hand SELECT stream, sum((payload->>'amount')::bigint)
					FROM es.event GROUP BY stream});
			});
		},
		ours => sub {
			return $events / seconds_of(sub {
				sql('log', "SELECT es_rebuild('balance')");
				finished('balance');
			});
		});
	check_log('log', $events);
};

row 'few-rows' => 'a projection into few rows, beside the aggregate of the same slices', sub {
	my $aggregate = $upsert{daily} =~ s/INSERT INTO daily SELECT/PERFORM/r =~ s/ON CONFLICT.*//sr;

	make_log();
	compare(
		title => 'catch-up, few rows', setting => "$events events",
		target => '>= 0.8', per => 'events/s',
		base => by_hand('daily', $aggregate, 10_000),
		ours => catch_up('daily', ''));
	check_log('log', $events);
};

row 'one-at-a-time' => 'a PL/pgSQL handler of each event, beside a loop that commits each 1,000', sub {
	make_log();
	sql('log', q{
		CREATE OR REPLACE FUNCTION handle(e es_batch) RETURNS void LANGUAGE plpgsql AS $$
		BEGIN
			INSERT INTO balance VALUES (e.stream, (e.payload->>'amount')::bigint)
			ON CONFLICT (stream) DO UPDATE SET amount = balance.amount + excluded.amount;
		END $$});
	compare(
		title => 'catch-up, event at a time', setting => "$events events",
		target => '>= 1.0', per => 'events/s',
		base => by_hand('balance', q{
			DECLARE e record;
			BEGIN
				FOR e IN SELECT * FROM %s ORDER BY "position" LOOP
					INSERT INTO balance VALUES (e.stream, (e.payload->>'amount')::bigint)
					ON CONFLICT (stream) DO UPDATE SET amount = balance.amount + excluded.amount;
				END LOOP;
			END}, 1000),
		ours => catch_up('balance', '', 'SELECT handle(e) FROM es_batch e ORDER BY "position"'));
	check_log('log', $events);
};

row sync => 'a balance kept by a sync projection, beside a row trigger', sub {
	database('plain', scripts => [ 'raw', 'peers' ]);
	database('bare', es => 1, scripts => ['es']);
	return note("sync projections: not in this build ($@)")
	  if !try_sql('bare', "SELECT es_create_projection('balance', \$q\$"
		. sprintf($upsert{balance}, 'es_batch') . "\$q\$, mode => 'sync')");
	my $appended = 0;

	foreach my $streams ($opt{streams}, 1)
	{
		foreach my $clients (@{ $opt{clients} })
		{
			my %load = (clients => $clients, vars => { streams => $streams });

			compare(
				title => 'sync projection, ' . ($streams > 1 ? "$streams streams" : 'one hot row'),
				setting => "$clients client" . ($clients > 1 ? 's' : ''),
				target => '>= 1.0', per => 'events/s', warm_up => 1,
				base => sub { pgbench('plain', 'trigger', %load) },
				ours => sub { pgbench('bare', 'append', %load, count => \$appended) });
		}
	}
	check_log('bare', $appended);
	drop_database($_) foreach 'plain', 'bare';
};

1;
