/*-------------------------------------------------------------------------
 * es.h
 *	  What every part of the extension shares: error codes and lock classes.
 *-------------------------------------------------------------------------
 */
#ifndef ES_H
#define ES_H

#include "compat.h"

/* The SQLSTATEs of the extension; doc/errors.md says what to do about each. */
#define ERRCODE_ES_VERSION_CONFLICT		MAKE_SQLSTATE('E', 'S', '0', '0', '1')
#define ERRCODE_ES_COMMAND_REJECTED		MAKE_SQLSTATE('E', 'S', '0', '0', '2')
#define ERRCODE_ES_UNKNOWN_COMMAND		MAKE_SQLSTATE('E', 'S', '0', '0', '3')
#define ERRCODE_ES_CONDITION_FAILED		MAKE_SQLSTATE('E', 'S', '0', '0', '4')
#define ERRCODE_ES_LEASE_LOST			MAKE_SQLSTATE('E', 'S', '0', '0', '5')

#define ERRCODE_ES_CANNOT_REBUILD		MAKE_SQLSTATE('E', 'S', '0', '2', '0')

/* Longest name of a stream, event type, category, command or projection. */
#define ES_MAX_NAME		512

#endif							/* ES_H */
