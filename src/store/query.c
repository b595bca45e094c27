/*-------------------------------------------------------------------------
 * query.c
 *	  Queries over types and tags, as JSON gives them:
 *
 *		{"items": [{"types": ["T", ...], "tags": ["t", ...]}, ...]}
 *
 * Items are alternatives; so are the types of an item, while an event must have
 * all of its tags.  This is the query of the Dynamic Consistency Boundary's
 * specification (dcb.events).
 *
 * An item is looked up, and locked, by one of its tags, and everybody must
 * choose the same one.  It is the longest, the first in order among equals:
 * what tells one from another of many ("username:ann") is mostly longer than
 * what they share ("tenant:7").
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "es.h"
#include "store/append.h"
#include "store/query.h"
#include "utils/builtins.h"

static void
bad_query(const char *problem)
{
	ereport(ERROR,
			(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
			 errmsg("invalid query over the log"),
			 errdetail("%s", problem),
			 errhint("A query is {\"items\": [{\"types\": [\"...\"], \"tags\": [\"...\"]}, ...]}; an event matches an item if it is of one of the types and has all of the tags.")));
}

static bool
key_is(const JsonbValue *key, const char *name)
{
	return key->val.string.len == strlen(name) &&
		memcmp(key->val.string.val, name, key->val.string.len) == 0;
}

static int
compare_tags(const void *a, const void *b)
{
	const text *x = *(text *const *) a;
	const text *y = *(text *const *) b;

	if (VARSIZE_ANY_EXHDR(x) != VARSIZE_ANY_EXHDR(y))
		return (int) VARSIZE_ANY_EXHDR(y) - (int) VARSIZE_ANY_EXHDR(x);
	return es_compare_texts(a, b);
}

/*
 * The names in the array of a key, each once.
 */
static text **
names_of(int i, const char *key, const char *what, JsonbValue *value, int *n)
{
	JsonbIterator *it;
	JsonbValue	v;
	JsonbIteratorToken token;
	text	  **names;
	int			unique = 0;

	*n = 0;
	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data))
		bad_query(psprintf("\"%s\" of item %d must be an array of strings.", key, i));
	names = palloc(sizeof(text *) * (JsonContainerSize(value->val.binary.data) + 1));
	it = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		if (v.type != jbvString)
			bad_query(psprintf("\"%s\" of item %d must be an array of strings.", key, i));
		names[*n] = cstring_to_text_with_len(v.val.string.val, v.val.string.len);
		es_check_name(what, names[*n]);
		(*n)++;
	}
	qsort(names, *n, sizeof(text *), compare_tags);
	for (int j = 0; j < *n; j++)
		if (unique == 0 || compare_tags(&names[unique - 1], &names[j]) != 0)
			names[unique++] = names[j];
	*n = unique;
	return names;
}

/*
 * Make element number "i" (from 1 on) of the items into an item.
 */
static void
item_from_json(int i, JsonbValue *element, EsQueryItem *item)
{
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;
	JsonbIteratorToken token;

	if (element->type != jbvBinary ||
		!JsonContainerIsObject(element->val.binary.data))
		bad_query(psprintf("Item %d is no object.", i));
	it = JsonbIteratorInit(element->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);
		if (key_is(&key, "types"))
			item->types = names_of(i, "types", "event type", &value, &item->ntypes);
		else if (key_is(&key, "tags"))
			item->tags = names_of(i, "tags", "tag", &value, &item->ntags);
		else
			bad_query(psprintf("Item %d has an unknown key \"%.*s\".", i,
							   key.val.string.len, key.val.string.val));
	}
	if (item->ntypes == 0 && item->ntags == 0)
		bad_query(psprintf("Item %d names neither \"types\" nor \"tags\".", i));
}

static void
items_from_json(EsQuery *query, JsonbValue *value)
{
	JsonbIterator *it;
	JsonbValue	element;
	JsonbIteratorToken token;

	if (value->type != jbvBinary || !JsonContainerIsArray(value->val.binary.data) ||
		JsonContainerSize(value->val.binary.data) == 0)
		bad_query("\"items\" must be an array with at least one item.");
	query->items = palloc0(sizeof(EsQueryItem) * JsonContainerSize(value->val.binary.data));
	it = JsonbIteratorInit(value->val.binary.data);
	while ((token = JsonbIteratorNext(&it, &element, true)) != WJB_DONE)
	{
		if (token != WJB_ELEM)
			continue;
		item_from_json(query->nitems + 1, &element, &query->items[query->nitems]);
		query->nitems++;
	}
}

/*
 * Make JSON into a query; an error where it is none.
 */
EsQuery *
es_query_from_json(Jsonb *json)
{
	EsQuery    *query = palloc0(sizeof(EsQuery));
	JsonbIterator *it;
	JsonbValue	key;
	JsonbValue	value;
	JsonbIteratorToken token;

	if (!JB_ROOT_IS_OBJECT(json))
		bad_query("It is no object.");
	it = JsonbIteratorInit(&json->root);
	while ((token = JsonbIteratorNext(&it, &key, true)) != WJB_DONE)
	{
		if (token != WJB_KEY)
			continue;
		(void) JsonbIteratorNext(&it, &value, true);
		if (!key_is(&key, "items"))
			bad_query(psprintf("Unknown key \"%.*s\".",
							   key.val.string.len, key.val.string.val));
		items_from_json(query, &value);
	}
	if (query->items == NULL)
		bad_query("The key \"items\" is missing.");
	return query;
}

/*
 * Whether an item names a type, or none.
 */
bool
es_item_has_type(const EsQueryItem *item, const text *type)
{
	int			len = VARSIZE_ANY_EXHDR(type);

	for (int i = 0; i < item->ntypes; i++)
		if (VARSIZE_ANY_EXHDR(item->types[i]) == len &&
			memcmp(VARDATA_ANY(item->types[i]), VARDATA_ANY(type), len) == 0)
			return true;
	return item->ntypes == 0;
}
