/*-------------------------------------------------------------------------
 * change.h
 *	  Keeping and announcing what has changed in watched tables.
 *-------------------------------------------------------------------------
 */
#ifndef ES_FANOUT_CHANGE_H
#define ES_FANOUT_CHANGE_H

#include "utils/jsonb.h"

extern void es_change_init(void);
extern void es_change_record(Oid relid, const char *channel, Jsonb *keys,
							 bool rebuilt);

extern bool es_changes_pending(void);
extern void es_changes_expect(bool expected);
extern void es_changes_announce(bool silently);

#endif							/* ES_FANOUT_CHANGE_H */
