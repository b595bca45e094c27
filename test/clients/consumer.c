/*-------------------------------------------------------------------------
 * consumer.c
 *	  A consumer that keeps its own account: it listens, and reads the log
 *	  from its own position on.
 *
 *		consumer CONNINFO CHANNEL LAST_TYPE
 *
 * Prints position, stream and version of every event, and ends with the first
 * one of type LAST_TYPE.  A notification is a hint and may get lost with the
 * connection, so after it has connected it reads first, and then waits.
 *-------------------------------------------------------------------------
 */
#include "client.h"

#define BATCH	"500"

/* Where we are; a real consumer keeps it with what it makes of the events. */
static char position[32] = "0";
static bool at_end = false;

/*
 * Read all there is.  False where the connection is lost.
 */
static bool
catch_up(PGconn *conn, const char *last_type)
{
	const char *values[] = {position, BATCH};
	int			n;

	do
	{
		PGresult   *result = query(conn,
								   "SELECT position, stream, version, type FROM es_read($1, $2)",
								   2, values);

		if (result == NULL)
			return false;
		n = PQntuples(result);
		for (int i = 0; i < n && !at_end; i++)
		{
			printf("%s %s %s\n", PQgetvalue(result, i, 0),
				   PQgetvalue(result, i, 1), PQgetvalue(result, i, 2));
			snprintf(position, sizeof(position), "%s", PQgetvalue(result, i, 0));
			at_end = strcmp(PQgetvalue(result, i, 3), last_type) == 0;
		}
		fflush(stdout);
		PQclear(result);
	} while (n > 0 && !at_end);
	return true;
}

/*
 * Sleep until a notification comes.  False where the connection is lost.
 */
static bool
wait_for_notification(PGconn *conn)
{
	struct pollfd p = {.fd = PQsocket(conn), .events = POLLIN};
	PGnotify   *notify;
	bool		notified = false;

	while (!notified)
	{
		if (poll(&p, 1, -1) < 0 || !PQconsumeInput(conn))
			return false;
		while ((notify = PQnotifies(conn)) != NULL)
		{
			notified = true;
			PQfreemem(notify);
		}
	}
	return true;
}

int
main(int argc, char **argv)
{
	char		listen[100];

	if (argc != 4)
	{
		fprintf(stderr, "usage: consumer CONNINFO CHANNEL LAST_TYPE\n");
		return 2;
	}
	snprintf(listen, sizeof(listen), "LISTEN %s", argv[2]);
	while (!at_end)
	{
		PGconn	   *conn = connect_patiently(argv[1]);
		PGresult   *result = query(conn, listen, 0, NULL);

		PQclear(result);
		while (result != NULL && catch_up(conn, argv[3]) && !at_end)
			if (!wait_for_notification(conn))
				break;
		PQfinish(conn);
	}
	return 0;
}
