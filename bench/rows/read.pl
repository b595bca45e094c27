# read.pl
#	  Reading the log, beside the plain SELECT by its indexes.

use strict;
use warnings;

use Bench;

my $made = 0;

# Streams of 100 events each, appended a hundred at a time in turns of ten.
sub make_streams
{
	return if $made++;
	database('streams', es => 1);
	sql('streams', q{
		SELECT count(es_append_batch('account-' || s, (
			SELECT jsonb_agg(jsonb_build_object('type', 'Deposited', 'payload', jsonb_build_object(
				'amount', n, 'note', repeat('x', 230), 'currency', 'EUR', 'by', 'teller-17')))
			  FROM generate_series(1, 10) n)))
		  FROM generate_series(1, 10) turn, generate_series(1, 1000) s});
	sql('streams', 'VACUUM ANALYZE es.event');
	return;
}

row read => 'es_read() in pages of 1,000 and es_stream() beside the plain SELECT', sub {
	make_streams();
	compare(
		title => 'es_read, pages of 1,000', setting => 'one client', target => '>= 0.9',
		per => 'pages/s', warm_up => 1,
		base => sub { pgbench('streams', 'raw_read', vars => { first => 0, last => 100_000 }) },
		ours => sub { pgbench('streams', 'read', vars => { first => 0, last => 100_000 }) });
	compare(
		title => 'es_stream of 100 events', setting => 'one client', target => '>= 0.9',
		per => 'streams/s', warm_up => 1,
		base => sub { pgbench('streams', 'raw_stream', vars => { streams => 1000 }) },
		ours => sub { pgbench('streams', 'stream', vars => { streams => 1000 }) });
	check_log('streams', 100_000);
};

row state => 'es_state() of 100 events, evolve in SQL, beside a loop in PL/pgSQL', sub {
	make_streams();
	return note('es_state: not in this build') if !has('streams', 'es_state');
	sql('streams', q{
		CREATE OR REPLACE FUNCTION evolve(state jsonb, event es.event) RETURNS jsonb
		LANGUAGE sql STABLE AS $$
			SELECT jsonb_build_object('balance',
				coalesce((state->>'balance')::bigint, 0) + (event.payload->>'amount')::bigint)
		$$;
		CREATE OR REPLACE FUNCTION state_by_loop(stream text) RETURNS jsonb
		LANGUAGE plpgsql STABLE AS $$
		DECLARE
			state jsonb := '{}';
			event es.event;
		BEGIN
			FOR event IN
				SELECT * FROM es.event e WHERE e.stream = state_by_loop.stream ORDER BY version
			LOOP
				state := evolve(state, event);
			END LOOP;
			RETURN state;
		END $$;
		SELECT es_create_aggregate('account', 'evolve(jsonb, es.event)');
		SELECT es_create_aggregate('purse', 'evolve(jsonb, es.event)');
		CREATE FUNCTION look(state jsonb, command es.command) RETURNS void
		LANGUAGE sql AS 'SELECT';
		SELECT es_create_command('FILL', 'purse', 'Deposited', validate => 'look(jsonb, es.command)')});

	# The streams of "account" were appended and have no snapshot; those of
	# "purse" came from commands, which left one at version 100.
	sql('streams', q{DO $$
		BEGIN
			FOR s IN 1..100 LOOP
				PERFORM es_submit('FILL', s::text, '{"amount": 7}') FROM generate_series(1, 100);
				COMMIT;
			END LOOP;
		END $$});
	foreach my $category ([ 'account', 'folded', 1000 ], [ 'purse', 'from a snapshot', 100 ])
	{
		my ($name, $how, $streams) = @$category;
		my %vars = (category => $name, streams => $streams);

		check("es_state agrees with the loop ($name)", value('streams', qq{
			SELECT count(*) FROM generate_series(1, 100) s
			 WHERE es_state('$name-' || s) IS DISTINCT FROM state_by_loop('$name-' || s)}) == 0);
		compare(
			title => 'es_state of 100 events', setting => "one client, $how", target => '>= 3',
			per => 'states/s', warm_up => 1,
			base => sub { pgbench('streams', 'state_loop', vars => \%vars) },
			ours => sub { pgbench('streams', 'state', vars => \%vars) });
	}
};

1;
