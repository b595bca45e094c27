/*-------------------------------------------------------------------------
 * identity.h
 *	  Which database a log belongs to: telling a copy from the original.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_IDENTITY_H
#define ES_STORE_IDENTITY_H

extern void es_identity_establish(void);
extern bool es_identity_active(void);
extern bool es_identity_is_mine(void);
extern char *es_epoch_text(void);

#endif							/* ES_STORE_IDENTITY_H */
