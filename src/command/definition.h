/*-------------------------------------------------------------------------
 * definition.h
 *	  A cache of definitions by name, and the functions that they name.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMMAND_DEFINITION_H
#define ES_COMMAND_DEFINITION_H

#include "fmgr.h"
#include "utils/hsearch.h"

/*
 * One kind of definition.  Declare it static, with the function that reads a
 * definition into the current memory context, or returns NULL.
 */
typedef struct EsDefinitions
{
	const char *kind;
	void	   *(*load) (const char *name);
	HTAB	   *entries;
} EsDefinitions;

extern void es_definitions_init(void);
extern uint64 es_definitions_generation(void);
extern void *es_definition(EsDefinitions *definitions, const char *name);

extern Oid	es_function_of(const char *kind, const char *name,
						   const char *signature);
extern void es_check_category(const text *category);
extern void es_check_function(const char *role, Oid function, Oid argument,
							  Oid rettype, bool set);
extern Oid	es_rowtype(const char *name);
extern char *es_search_path_to_keep(void);
extern int	es_search_path_enter(const char *search_path);
extern void es_search_path_leave(int level);

#endif							/* ES_COMMAND_DEFINITION_H */
