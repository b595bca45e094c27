/*-------------------------------------------------------------------------
 * depend.h
 *	  Tables that projections declare, guarded against DROP.
 *-------------------------------------------------------------------------
 */
#ifndef ES_PROJECTION_DEPEND_H
#define ES_PROJECTION_DEPEND_H

extern void es_depend_init(void);

#endif							/* ES_PROJECTION_DEPEND_H */
