/*-------------------------------------------------------------------------
 * latency.c
 *	  How long a notification takes on an idle server: that of an append, and
 *	  beside it a bare NOTIFY in the transaction of an INSERT.
 *
 *		latency CONNINFO ROUNDS
 *
 * Prints medians in microseconds, from sending the statement and from its
 * acknowledgement to the receipt of the notification in another session.
 *-------------------------------------------------------------------------
 */
#include <time.h>

#include "client.h"

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int
compare(const void *a, const void *b)
{
	double		x = *(const double *) a;
	double		y = *(const double *) b;

	return x < y ? -1 : x > y;
}

static double
median(double *values, int n)
{
	qsort(values, n, sizeof(double), compare);
	return values[n / 2];
}

static void
execute(PGconn *conn, const char *sql)
{
	PGresult   *result = query(conn, sql, 0, NULL);

	if (result == NULL)
		exit(1);
	PQclear(result);
}

/*
 * When the next notification comes.
 */
static double
receive(PGconn *conn)
{
	struct pollfd p = {.fd = PQsocket(conn), .events = POLLIN};
	PGnotify   *notify;

	while ((notify = PQnotifies(conn)) == NULL)
		if (poll(&p, 1, -1) < 0 || !PQconsumeInput(conn))
			exit(1);
	PQfreemem(notify);
	return now();
}

static void
measure(const char *conninfo, const char *name, const char *channel,
		const char *sql, int rounds)
{
	PGconn	   *sender = connect_patiently(conninfo);
	PGconn	   *listener = connect_patiently(conninfo);
	double	   *sent = malloc(sizeof(double) * rounds);
	double	   *acknowledged = malloc(sizeof(double) * rounds);

	execute(listener, channel);
	execute(sender, sql);
	(void) receive(listener);
	for (int i = 0; i < rounds; i++)
	{
		double		begin;
		double		end;
		double		received;

		/* Longer than es.notify_interval: the server is idle again. */
		usleep(15 * 1000);
		begin = now();
		execute(sender, sql);
		end = now();
		received = receive(listener);
		sent[i] = received - begin;
		acknowledged[i] = received - end;
	}
	printf("%s %.0f %.0f\n", name, median(sent, rounds), median(acknowledged, rounds));
	PQfinish(sender);
	PQfinish(listener);
}

int
main(int argc, char **argv)
{
	if (argc != 3)
	{
		fprintf(stderr, "usage: latency CONNINFO ROUNDS\n");
		return 2;
	}
	measure(argv[1], "append", "LISTEN es",
			"SELECT es_append('latency-1', 'PING')", atoi(argv[2]));
	measure(argv[1], "bare", "LISTEN bare",
			"WITH i AS (INSERT INTO bare VALUES (1) RETURNING n) SELECT pg_notify('bare', n::text) FROM i",
			atoi(argv[2]));
	return 0;
}
