/*-------------------------------------------------------------------------
 * client.h
 *	  What the example clients have in common: connecting, and again after
 *	  the server was away.
 *-------------------------------------------------------------------------
 */
#ifndef CLIENT_H
#define CLIENT_H

#include <libpq-fe.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void
ignore_notice(void *arg, const PGresult *result)
{
	(void) arg;
	(void) result;
}

/*
 * Connect, and keep trying as long as the server is not there.
 */
static PGconn *
connect_patiently(const char *conninfo)
{
	for (;;)
	{
		PGconn	   *conn = PQconnectdb(conninfo);

		if (PQstatus(conn) == CONNECTION_OK)
		{
			PQsetNoticeReceiver(conn, ignore_notice, NULL);
			return conn;
		}
		PQfinish(conn);
		usleep(100 * 1000);
	}
}

/*
 * Run a statement with text parameters.  NULL where the connection is lost; any
 * other error ends the program.
 */
static PGresult *
query(PGconn *conn, const char *sql, int n, const char *const *values)
{
	PGresult   *result = PQexecParams(conn, sql, n, NULL, values, NULL, NULL, 0);
	ExecStatusType status = PQresultStatus(result);
	const char *sqlstate;

	if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK)
		return result;
	sqlstate = PQresultErrorField(result, PG_DIAG_SQLSTATE);
	if (PQstatus(conn) == CONNECTION_BAD || sqlstate == NULL ||
		strncmp(sqlstate, "57P", 3) == 0)
	{
		PQclear(result);
		return NULL;
	}
	/* ES005: our lease has ended; what we did not acknowledge is not ours. */
	if (strcmp(sqlstate, "ES005") == 0)
		return result;
	fprintf(stderr, "%s", PQerrorMessage(conn));
	exit(1);
}

static inline bool
failed(const PGresult *result)
{
	ExecStatusType status = PQresultStatus(result);

	return status != PGRES_TUPLES_OK && status != PGRES_COMMAND_OK;
}

#endif							/* CLIENT_H */
