/*-------------------------------------------------------------------------
 * fault.c
 *	  Places where a test lets something go wrong.
 *
 * A test writes a file "es_fault" into the data directory, with one line:
 *
 *		name action skip
 *
 * The first process that comes to the place of that name for the time after
 * "skip" others renames the file, so that it happens once, and then
 *
 *		kill		dies as by the kernel's out-of-memory killer
 *		postmaster	kills the postmaster in that way
 *		error		raises an error
 *		stop		stops, until somebody sends it SIGCONT
 *		sleep		sleeps for two seconds
 *
 * Called at the end of transactions, too, where no error may be raised and no
 * memory allocated: so all of it is plain C and system calls.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "fault.h"

#ifdef ES_DEBUG

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include "es.h"
#include "miscadmin.h"

#define ARMED	"es_fault"
#define FIRED	"es_fault.fired"

/* How often this process has come to the place that is armed. */
static int	visits = 0;

/*
 * Read the file; false where there is none, or it names another place.
 */
static bool
is_armed(const char *name, char *action, int *skip)
{
	char		line[256];
	char		place[64];
	int			fd = open(ARMED, O_RDONLY);
	int			n;

	if (fd < 0)
		return false;
	n = read(fd, line, sizeof(line) - 1);
	close(fd);
	line[Max(n, 0)] = '\0';
	return sscanf(line, "%63s %31s %d", place, action, skip) == 3 &&
		strcmp(place, name) == 0;
}

void
es_fault(const char *name)
{
	char		action[32];
	int			skip;

	if (!is_armed(name, action, &skip) || visits++ < skip ||
		rename(ARMED, FIRED) != 0)
		return;
	visits = 0;
	write_stderr("es fault: %s at %s in process %d\n", action, name, MyProcPid);
	if (strcmp(action, "kill") == 0)
		kill(MyProcPid, SIGKILL);
	else if (strcmp(action, "postmaster") == 0)
		kill(PostmasterPid, SIGKILL);
	else if (strcmp(action, "stop") == 0)
		kill(MyProcPid, SIGSTOP);
	else if (strcmp(action, "sleep") == 0)
		pg_usleep(2000000L);
	else
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("fault at %s", name)));
}

#endif							/* ES_DEBUG */
