/*-------------------------------------------------------------------------
 * slowflush.c
 *	  A disk that takes a millisecond to flush.
 *
 * Preloaded into the server (LD_PRELOAD), lets every fdatasync() take at
 * least 1 ms, as networked and many consumer disks do.  Whatever serialises
 * commits shows on such a disk, and on a fast one does not.
 *-------------------------------------------------------------------------
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>
#include <unistd.h>

int
fdatasync(int fd)
{
	static int	(*real) (int) = NULL;
	struct timespec flush = {0, 1000000};

	if (real == NULL)
		real = (int (*) (int)) dlsym(RTLD_NEXT, "fdatasync");
	nanosleep(&flush, NULL);
	return real(fd);
}
