/*-------------------------------------------------------------------------
 * fault.h
 *	  Places where a test lets something go wrong.
 *
 * Nothing is left of them unless ES_DEBUG is set when the library is built.
 *-------------------------------------------------------------------------
 */
#ifndef ES_FAULT_H
#define ES_FAULT_H

#ifdef ES_DEBUG
extern void es_fault(const char *name);
#define ES_FAULT(name)	es_fault(name)
#else
#define ES_FAULT(name)	((void) 0)
#endif

#endif							/* ES_FAULT_H */
