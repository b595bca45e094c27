/*-------------------------------------------------------------------------
 * sender.c
 *	  The e-mail sender of the online store: a consumer outside the database
 *	  that answers with commands.
 *
 *		sender CONNINFO SUBSCRIPTION CONSUMER OUTBOX [DIE_AFTER]
 *
 * For every event it writes a line to the file OUTBOX, which stands for the
 * mail server, and submits the command RECORD_EMAIL.  The id of the command
 * is derived from the event, so the command of an event that is handed out
 * again has been submitted already, and nothing happens.  With DIE_AFTER it
 * dies after that many commands, before it has acknowledged the last one.
 *
 * No protocol makes a mail server and a database agree: a mail may go out
 * twice, and the message id, derived from the event as well, lets the receiver
 * drop the second one.
 *-------------------------------------------------------------------------
 */
#include <signal.h>

#include "client.h"

static const char *subscription;
static const char *consumer;

static void
send_mail(const char *outbox, const char *position, const char *address)
{
	FILE	   *file = fopen(outbox, "a");

	if (file == NULL)
	{
		perror(outbox);
		exit(1);
	}
	fprintf(file, "Message-ID: <%s.%s> To: %s\n", subscription, position, address);
	fclose(file);
}

/*
 * Answer with a command whose id says which event it answers.
 */
static bool
submit(PGconn *conn, const char *position, const char *stream)
{
	const char *values[] = {subscription, position, stream};
	PGresult   *result = query(conn,
							   "SELECT duplicate FROM es_submit('RECORD_EMAIL', split_part($3, '-', 2), "
							   "  jsonb_build_object('message', $1 || '.' || $2), "
							   "  command_id => md5($1 || '.' || $2)::uuid)", 3, values);

	if (result != NULL && PQgetvalue(result, 0, 0)[0] == 't')
		printf("position %s was answered already\n", position);
	PQclear(result);
	return result != NULL;
}

static bool
acknowledge(PGconn *conn, const char *position)
{
	const char *values[] = {subscription, consumer, position};
	PGresult   *result = query(conn, "SELECT es_ack($1, $2, $3)", 3, values);

	PQclear(result);
	return result != NULL;
}

static bool
work(PGconn *conn, const char *outbox, int *commands_left)
{
	const char *values[] = {subscription, consumer};
	PGresult   *events = query(conn,
							   "SELECT position, stream, payload->>'email' "
							   "FROM es_fetch($1, $2, 10, lease => '1 s', wait => '1 s')", 2, values);
	bool		ok = events != NULL;

	for (int i = 0; i < PQntuples(events) && ok; i++)
	{
		const char *position = PQgetvalue(events, i, 0);

		send_mail(outbox, position, PQgetvalue(events, i, 2));
		ok = submit(conn, position, PQgetvalue(events, i, 1));
		if (--*commands_left == 0)
			raise(SIGKILL);
		ok = ok && acknowledge(conn, position);
	}
	fflush(stdout);
	PQclear(events);
	return ok;
}

int
main(int argc, char **argv)
{
	int			commands_left;

	if (argc < 5)
	{
		fprintf(stderr, "usage: sender CONNINFO SUBSCRIPTION CONSUMER OUTBOX [DIE_AFTER]\n");
		return 2;
	}
	subscription = argv[2];
	consumer = argv[3];
	commands_left = argc > 5 ? atoi(argv[5]) : -1;
	for (;;)
	{
		PGconn	   *conn = connect_patiently(argv[1]);

		while (work(conn, argv[4], &commands_left))
			continue;
		PQfinish(conn);
	}
}
