# 002_real_input.pl
#	  A real log, submitted as commands by several sessions at a time: what the
#	  projections make of it is what plain SQL makes of the file.
#
# The file has 34,724 events of 10,000 road-traffic fines.  ES_DATA names the
# directory that it is in.

use strict;
use warnings;

use EsNode;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $file = ($ENV{ES_DATA} || '.') . '/traffic_fines.csv';

plan skip_all => 'no sample data: ES_DATA names no directory with traffic_fines.csv'
  unless -r $file;

my $sessions = 4;
my $node = EsNode->create('fines', conf => 'log_statement = none');

$node->safe_psql('postgres', qq{
	CREATE TABLE raw (line bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
		case_id text, activity text, occurred_on date, payload jsonb);
	COPY raw (case_id, activity, occurred_on, payload) FROM '$file' (FORMAT csv, HEADER);
	ANALYZE raw});
my $lines = $node->safe_psql('postgres', 'SELECT count(*) FROM raw');

# A command for each activity, and two read models of different shape.
$node->safe_psql('postgres', q{
	SELECT es_create_command(activity, 'fine', upper(replace(activity, ' ', '_')),
		creates => activity = 'Create Fine')
	  FROM (SELECT DISTINCT activity FROM raw) a;

	CREATE TABLE fine (
		case_id text PRIMARY KEY,
		amount numeric,
		expense numeric NOT NULL,
		paid numeric,
		outstanding numeric GENERATED ALWAYS AS (amount + expense - coalesce(paid, 0)) STORED,
		last_activity text NOT NULL,
		events bigint NOT NULL);

	-- A penalty sets the amount anew, and a payment tells what all add up to.
	SELECT es_create_projection('fine', $$
		INSERT INTO fine AS f (case_id, amount, expense, paid, last_activity, events)
		SELECT substr(stream, 6),
			(array_agg(payload->'amount' ORDER BY position DESC)
				FILTER (WHERE payload ? 'amount'))[1]::numeric,
			coalesce(sum((payload->>'expense')::numeric), 0),
			(array_agg(payload->'total_payment_amount' ORDER BY position DESC)
				FILTER (WHERE type = 'PAYMENT'))[1]::numeric,
			(array_agg(type ORDER BY position DESC))[1],
			count(*)
		  FROM es_batch GROUP BY stream
		ON CONFLICT (case_id) DO UPDATE SET
			amount = coalesce(excluded.amount, f.amount),
			expense = f.expense + excluded.expense,
			paid = coalesce(excluded.paid, f.paid),
			last_activity = excluded.last_activity,
			events = f.events + excluded.events $$,
		categories => '{fine}');

	CREATE TABLE activity_month (
		activity text, month date, events bigint NOT NULL, payments numeric,
		PRIMARY KEY (activity, month));
	SELECT es_create_projection('activity_month', $$
		INSERT INTO activity_month AS a
		SELECT type, date_trunc('month', (payload->>'occurred_on')::date), count(*),
			sum((payload->>'payment_amount')::numeric)
		  FROM es_batch GROUP BY 1, 2
		ON CONFLICT (activity, month) DO UPDATE SET
			events = a.events + excluded.events,
			payments = coalesce(a.payments + excluded.payments, a.payments, excluded.payments) $$)});

#
# Every line is a command and a transaction of its own; the lines of a case are
# submitted by one session, in their order.
#
my $began = time;
my @runs;
for my $session (0 .. $sessions - 1)
{
	my $in = qq{
		SELECT format('SELECT es_submit(%L, %L, %L)', activity, case_id,
				payload || jsonb_build_object('occurred_on', occurred_on))
		  FROM raw
		 WHERE abs(hashtext(case_id)::bigint) % $sessions = $session
		 ORDER BY line \\gexec};
	my ($out, $err) = ('', '');
	my $run = IPC::Run::start(
		[ 'psql', '-XAtq', '-v', 'ON_ERROR_STOP=1', '-d', $node->connstr('postgres') ],
		'<', \$in, '>', \$out, '2>', \$err);

	push @runs, { run => $run, err => \$err, out => \$out };
}
my $failed = 0;
for my $r (@runs)
{
	$r->{run}->finish && ${ $r->{err} } eq ''
	  or do { $failed++; diag(${ $r->{err} }) };
}
is($failed, 0, "$sessions sessions submit all lines without an error");
my $submitted = time - $began;

ok($node->wait_caught_up('postgres', 'fine'), 'the first projection catches up');
ok($node->wait_caught_up('postgres', 'activity_month'), 'the second projection catches up');
diag(sprintf('%d commands in %.1f s, and %.1f s until both projections had them',
	$lines, $submitted, time - $began - $submitted));

# How many rows only one of two queries has, as EXCEPT finds them both ways.
sub differences
{
	my ($one, $other) = @_;

	return $node->safe_psql('postgres', qq{
		WITH one AS ($one), other AS ($other)
		SELECT (SELECT count(*) FROM (TABLE one EXCEPT TABLE other) d),
			(SELECT count(*) FROM (TABLE other EXCEPT TABLE one) d),
			(SELECT count(*) FROM one) = (SELECT count(*) FROM other)});
}

is($node->safe_psql('postgres', 'SELECT count(*) FROM es.event'),
	$lines, 'every command became one event');
is( differences(
		'SELECT case_id, upper(replace(activity, $$ $$, $$_$$)) AS type,
			row_number() OVER (PARTITION BY case_id ORDER BY line) AS version,
			payload || jsonb_build_object($$occurred_on$$, occurred_on) AS payload FROM raw',
		'SELECT substr(stream, 6), type, version, payload FROM es.event'),
	'0|0|t',
	'the events of each case are in the order of the file');
is( differences(
		q{SELECT case_id, amount, expense, paid, amount + expense - coalesce(paid, 0),
				last_activity, events
		    FROM (SELECT case_id, count(*) AS events,
						coalesce(sum((payload->>'expense')::numeric), 0) AS expense
					FROM raw GROUP BY case_id) e
		    JOIN (SELECT DISTINCT ON (case_id) case_id, (payload->>'amount')::numeric AS amount
					FROM raw WHERE payload ? 'amount'
					ORDER BY case_id, line DESC) a USING (case_id)
		    LEFT JOIN (SELECT DISTINCT ON (case_id) case_id,
						(payload->>'total_payment_amount')::numeric AS paid
					FROM raw WHERE activity = 'Payment'
					ORDER BY case_id, line DESC) p USING (case_id)
		    JOIN (SELECT DISTINCT ON (case_id) case_id,
						upper(replace(activity, ' ', '_')) AS last_activity
					FROM raw ORDER BY case_id, line DESC) l USING (case_id)},
		'TABLE fine'),
	'0|0|t', 'one row for each fine, as plain SQL computes it from the file');
is( differences(
		q{SELECT upper(replace(activity, ' ', '_')), date_trunc('month', occurred_on)::date,
			count(*), sum((payload->>'payment_amount')::numeric) FROM raw GROUP BY 1, 2},
		'TABLE activity_month'),
	'0|0|t', 'one row for each activity and month, as plain SQL computes it');
is($node->safe_psql('postgres', q{
		SELECT sum(events_applied), count(last_error) FROM es_projections}),
	2 * $lines . '|0', 'each projection applied each event once');

# The same read model from the whole log at once.
$node->safe_psql('postgres', q{
	CREATE TABLE grown AS TABLE fine;
	TRUNCATE fine;
	SELECT es_create_projection('again', query, categories => '{fine}', batch_size => 1000000)
	  FROM es_projections WHERE name = 'fine';
	SELECT es_drop_projection('fine')});
ok($node->wait_caught_up('postgres', 'again'), 'a projection can begin with the whole log');
is(differences('TABLE grown', 'TABLE fine'), '0|0|t',
	'one large batch gives what the many small ones gave');

my $first = $node->safe_psql('postgres', 'SELECT case_id FROM raw WHERE line = 1');
my ($ret, $out, $err) = $node->psql('postgres', "SELECT es_submit('Create Fine', '$first')");
like($err, qr/ERROR:  fine "\Q$first\E" already exists/,
	'a fine that exists is not created again');
($ret, $out, $err) = $node->psql('postgres', q{SELECT es_submit('Payment', 'no such case')});
like($err, qr/ERROR:  fine "no such case" does not exist/,
	'a fine that does not exist is not paid');
is($node->safe_psql('postgres', 'SELECT count(*) FROM es.event'),
	$lines, 'what is rejected appends nothing');

$node->stop;

done_testing();
