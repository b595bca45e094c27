/*-------------------------------------------------------------------------
 * client.c
 *	  What psql and pgbench cannot do: listen, and take times.
 *
 *		client listen CHANNEL N
 *			Hold N connections that listen and read what comes, until told to
 *			end by SIGTERM.
 *		client latency KIND COUNT
 *			Print, in microseconds, how long each of COUNT samples took, with
 *			20 ms of silence before each:
 *			notify	from sending NOTIFY to its arrival in another session
 *			visible	from the commit of an es_append(), as the client learns of
 *					it, to the row in the read model of projection "latency",
 *					as another session that keeps looking sees it
 *			wait	the same, as the return of es_wait() tells
 *
 * Connects as the environment says.
 *-------------------------------------------------------------------------
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <libpq-fe.h>

static double
now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void
quit(PGconn *conn)
{
	fprintf(stderr, "client: %s", PQerrorMessage(conn));
	exit(1);
}

static PGconn *
connect_server(void)
{
	PGconn	   *conn = PQconnectdb("");

	if (PQstatus(conn) != CONNECTION_OK)
		quit(conn);
	return conn;
}

static volatile sig_atomic_t stopped = 0;

static void
stop(int sig)
{
	(void) sig;
	stopped = 1;
}

/*
 * Run a statement and return the first value of its result.
 */
static char *
run(PGconn *conn, const char *sql)
{
	static char value[64];
	PGresult   *result = PQexec(conn, sql);
	ExecStatusType status = PQresultStatus(result);

	if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK)
		quit(conn);
	value[0] = '\0';
	if (PQntuples(result) > 0)
		snprintf(value, sizeof(value), "%s", PQgetvalue(result, 0, 0));
	PQclear(result);
	return value;
}

static void
prepare(PGconn *conn, const char *sql)
{
	PGresult   *result = PQprepare(conn, "look", sql, 0, NULL);

	if (PQresultStatus(result) != PGRES_COMMAND_OK)
		quit(conn);
	PQclear(result);
}

static long
look(PGconn *conn)
{
	PGresult   *result = PQexecPrepared(conn, "look", 0, NULL, NULL, NULL, 0);
	long		value;

	if (PQresultStatus(result) != PGRES_TUPLES_OK)
		quit(conn);
	value = atol(PQgetvalue(result, 0, 0));
	PQclear(result);
	return value;
}

static void
read_notifications(PGconn *conn, int *count)
{
	PGnotify   *notify;

	if (!PQconsumeInput(conn))
		quit(conn);
	while ((notify = PQnotifies(conn)) != NULL)
	{
		(*count)++;
		PQfreemem(notify);
	}
}

static int
listen_until_stopped(const char *channel, int n)
{
	PGconn	  **conns = malloc(n * sizeof(PGconn *));
	struct pollfd *fds = malloc(n * sizeof(struct pollfd));
	char		sql[100];
	int			count = 0;

	snprintf(sql, sizeof(sql), "LISTEN %s", channel);
	for (int i = 0; i < n; i++)
	{
		conns[i] = connect_server();
		run(conns[i], sql);
		fds[i].fd = PQsocket(conns[i]);
		fds[i].events = POLLIN;
	}
	printf("listening\n");
	fflush(stdout);
	signal(SIGTERM, stop);
	while (!stopped)
	{
		if (poll(fds, n, 1000) < 0)
			continue;
		for (int i = 0; i < n; i++)
			if (fds[i].revents != 0)
				read_notifications(conns[i], &count);
	}
	for (int i = 0; i < n; i++)
		PQfinish(conns[i]);
	return 0;
}

static double
sample_notify(PGconn *sender, PGconn *receiver)
{
	struct pollfd fd = {PQsocket(receiver), POLLIN, 0};
	int			count = 0;
	double		begin = now();

	run(sender, "NOTIFY latency");
	while (count == 0)
	{
		poll(&fd, 1, -1);
		read_notifications(receiver, &count);
	}
	return now() - begin;
}

static double
sample_visible(PGconn *appender, PGconn *reader)
{
	long		expected = look(reader) + 1;
	double		begin;

	run(appender, "SELECT es_append('latency-1', 'Sampled', '{\"amount\": 1}')");
	begin = now();
	while (look(reader) < expected)
		continue;
	return now() - begin;
}

static double
sample_wait(PGconn *appender)
{
	char		sql[100];
	double		begin;

	snprintf(sql, sizeof(sql), "SELECT es_wait('latency', %s)",
			 run(appender, "SELECT (es_append('latency-1', 'Sampled', '{\"amount\": 1}')).position"));
	begin = now();
	if (strcmp(run(appender, sql), "t") != 0)
		quit(appender);
	return now() - begin;
}

static int
measure_latency(const char *kind, int count)
{
	PGconn	   *a = connect_server();
	PGconn	   *b = connect_server();
	struct timespec silence = {0, 20000000};

	if (strcmp(kind, "notify") == 0)
		run(b, "LISTEN latency");
	else
		prepare(b, "SELECT coalesce(sum(amount), 0)::bigint FROM latency");
	for (int i = 0; i < count; i++)
	{
		double		sample;

		nanosleep(&silence, NULL);
		if (strcmp(kind, "notify") == 0)
			sample = sample_notify(a, b);
		else if (strcmp(kind, "wait") == 0)
			sample = sample_wait(a);
		else
			sample = sample_visible(a, b);
		printf("%.1f\n", sample);
	}
	PQfinish(a);
	PQfinish(b);
	return 0;
}

int
main(int argc, char **argv)
{
	if (argc == 4 && strcmp(argv[1], "listen") == 0)
		return listen_until_stopped(argv[2], atoi(argv[3]));
	if (argc == 4 && strcmp(argv[1], "latency") == 0)
		return measure_latency(argv[2], atoi(argv[3]));
	fprintf(stderr, "usage: client listen CHANNEL N | client latency KIND COUNT\n");
	return 2;
}
