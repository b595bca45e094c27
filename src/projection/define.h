/*-------------------------------------------------------------------------
 * define.h
 *	  Defining projections, and what changes them.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_DEFINE_H
#define ES_PROJECTION_DEFINE_H

#include "es.h"
#include "projection/registry.h"

ES_NORETURN extern void es_projection_missing(const char *name);
extern void es_projection_lock(Datum name);
extern List *es_projection_open(Datum name, const char *function);
extern void es_projection_forget_errors(Datum name);
extern void es_projection_revise(Datum name);
extern void es_projection_check_query(const char *query);
extern void es_projection_check_modes(Datum name);
extern void es_check_word(const char *value, const char *option,
						  const char *one, const char *other);
extern void es_check_partitions(int partitions);

#endif							/* ES_PROJECTION_DEFINE_H */
