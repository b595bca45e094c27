/*-------------------------------------------------------------------------
 * query.h
 *	  Queries over types and tags, as JSON gives them.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_QUERY_H
#define ES_STORE_QUERY_H

#include "utils/jsonb.h"

/*
 * What an event must be to match: of one of the types, if there are any, and
 * tagged with all of the tags.  There is a type or a tag.
 */
typedef struct EsQueryItem
{
	int			ntypes;
	text	  **types;
	int			ntags;
	text	  **tags;			/* the one to go by first; see query.c */
} EsQueryItem;

/*
 * An event matches a query where it matches one of the items.
 */
typedef struct EsQuery
{
	int			nitems;
	EsQueryItem *items;
} EsQuery;

extern EsQuery *es_query_from_json(Jsonb *json);
extern bool es_item_has_type(const EsQueryItem *item, const text *type);

#endif							/* ES_STORE_QUERY_H */
