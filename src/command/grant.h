/*-------------------------------------------------------------------------
 * grant.h
 *	  Who may submit which command.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMMAND_GRANT_H
#define ES_COMMAND_GRANT_H

/*
 * Who may submit a command, as its definition keeps it.
 */
typedef struct EsSubmitters
{
	Oid			append;			/* es_append(), the right of writers */
	int			nroles;
	Oid		   *roles;			/* the owner, and who has a grant */
} EsSubmitters;

extern void es_submitters_load(EsSubmitters *submitters, const char *command);
extern void es_check_may_submit(const EsSubmitters *submitters,
								const char *command);

#endif							/* ES_COMMAND_GRANT_H */
