/*-------------------------------------------------------------------------
 * worker.c
 *	  A consumer of a subscription, in the two ways there are.
 *
 *		worker CONNINFO SUBSCRIPTION CONSUMER least|exact
 *
 * "least" handles each event, which is a row in the table handled, and
 * acknowledges the batch after that: at least once.  "exact" does both in one
 * transaction: exactly once.  Runs until it is killed.
 *
 * For the test, the table handed_out tells what came when, and acknowledged
 * from when on it may not come again.
 *-------------------------------------------------------------------------
 */
#include "client.h"

static const char *subscription;
static const char *consumer;

/*
 * Handle an event.
 */
static bool
handle(PGconn *conn, PGresult *events, int i)
{
	const char *values[] = {subscription, consumer, PQgetvalue(events, i, 0),
	PQgetvalue(events, i, 1), PQgetvalue(events, i, 2)};
	PGresult   *result = query(conn,
							   "INSERT INTO handled (subscription, consumer, position, stream, version) "
							   "VALUES ($1, $2, $3, $4, $5)", 5, values);

	PQclear(result);
	return result != NULL;
}

/*
 * Acknowledge all up to an event.  False where the connection or the lease is
 * lost.
 */
static bool
acknowledge(PGconn *conn, PGresult *events, int i)
{
	const char *values[] = {subscription, consumer, PQgetvalue(events, i, 0)};
	PGresult   *result = query(conn, "SELECT es_ack($1, $2, $3)", 3, values);
	bool		ok = result != NULL && !failed(result);

	PQclear(result);
	return ok;
}

/*
 * Note, for the test, that the events are acknowledged.
 */
static bool
note_acknowledged(PGconn *conn, PGresult *events)
{
	int			n = PQntuples(events);
	char	   *positions = malloc(32 * n + 2);
	char	   *end = positions;
	const char *values[] = {subscription, consumer, positions};
	PGresult   *result;

	for (int i = 0; i < n; i++)
		end += sprintf(end, "%c%s", i == 0 ? '{' : ',', PQgetvalue(events, i, 0));
	strcpy(end, "}");
	result = query(conn,
				   "INSERT INTO acknowledged (subscription, consumer, position) "
				   "SELECT $1, $2, unnest($3::bigint[])", 3, values);
	PQclear(result);
	free(positions);
	return result != NULL;
}

static bool
run(PGconn *conn, const char *command)
{
	PGresult   *result = query(conn, command, 0, NULL);

	PQclear(result);
	return result != NULL;
}

/*
 * Fetch some events and handle them.  False where the connection is lost.
 */
static bool
work(PGconn *conn, bool exact)
{
	const char *values[] = {subscription, consumer};
	PGresult   *events = query(conn,
							   "WITH e AS MATERIALIZED (SELECT * FROM es_fetch($1, $2, 50, lease => '2 s', wait => '1 s')), "
							   " o AS (INSERT INTO handed_out (subscription, position) SELECT $1, position FROM e) "
							   "SELECT position, stream, version FROM e ORDER BY position", 2, values);
	int			n = PQntuples(events);
	bool		ok = events != NULL;

	if (n > 0)
	{
		bool		acknowledged;

		if (exact)
			ok = run(conn, "BEGIN");
		for (int i = 0; i < n && ok; i++)
			ok = handle(conn, events, i);
		acknowledged = ok && acknowledge(conn, events, n - 1);
		if (exact && ok)
			ok = run(conn, acknowledged ? "COMMIT" : "ROLLBACK");
		if (!exact && acknowledged)
			ok = note_acknowledged(conn, events);
	}
	PQclear(events);
	return ok && PQstatus(conn) == CONNECTION_OK;
}

int
main(int argc, char **argv)
{
	if (argc != 5)
	{
		fprintf(stderr, "usage: worker CONNINFO SUBSCRIPTION CONSUMER least|exact\n");
		return 2;
	}
	subscription = argv[2];
	consumer = argv[3];
	for (;;)
	{
		PGconn	   *conn = connect_patiently(argv[1]);

		while (work(conn, strcmp(argv[4], "exact") == 0))
			continue;
		PQfinish(conn);
	}
}
