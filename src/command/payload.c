/*-------------------------------------------------------------------------
 * payload.c
 *	  Checking that a payload populates the composite type of its command.
 *
 * PostgreSQL's types and domains are the schema language: each attribute is
 * populated as jsonb_populate_record() would, one by one, so that the error
 * can name the key.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_type.h"
#include "command/payload.h"
#include "es.h"
#include "fmgr.h"
#include "funcapi.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/memutils.h"
#include "utils/typcache.h"

/*
 * Whether an SQLSTATE is of a class that an application has made up.  Classes
 * that begin with 0 to 4 or A to H are the standard's; of the others PostgreSQL
 * uses 53 to 58, 72, P0 and XX.
 */
static bool
is_of_application(int sqlerrcode)
{
	const char *state = unpack_sql_state(sqlerrcode);

	return ((state[0] >= '6' && state[0] <= '9') ||
			(state[0] >= 'I' && state[0] <= 'Z')) &&
		strncmp(state, "72", 2) != 0 &&
		strncmp(state, "P0", 2) != 0 && strncmp(state, "XX", 2) != 0;
}

/*
 * Whether an error means that a command is not acceptable, as opposed to a
 * failure of the server or a reason to retry: what functions raise, bad data
 * and violated constraints.
 */
bool
es_is_rejection(int sqlerrcode)
{
	switch (ERRCODE_TO_CATEGORY(sqlerrcode))
	{
		case MAKE_SQLSTATE('P', '0', '0', '0', '0'):
			return sqlerrcode == ERRCODE_RAISE_EXCEPTION ||
				sqlerrcode == ERRCODE_ASSERT_FAILURE;
		case ERRCODE_DATA_EXCEPTION:
		case ERRCODE_INTEGRITY_CONSTRAINT_VIOLATION:
			return true;
		default:
			return is_of_application(sqlerrcode);
	}
}

/*
 * How to populate one attribute: jsonb_populate_record() on a row of it alone,
 * so that an error can only be about its key.
 */
typedef struct Attribute
{
	char	   *name;
	Oid			type;
	int32		typmod;
	FmgrInfo	populate;
	Datum		row;			/* the row, with a NULL in it */
} Attribute;

struct EsPayloadType
{
	Oid			type;
	uint64		identifier;		/* of the tuple descriptor this was made of */
	MemoryContext context;
	int			nattributes;
	Attribute  *attributes;
};

static void
make_attribute(Attribute *attribute, Form_pg_attribute att)
{
	TupleDesc	desc = CreateTemplateTupleDesc(1);
	Datum		value = (Datum) 0;
	bool		isnull = true;

	attribute->name = pstrdup(NameStr(att->attname));
	attribute->type = att->atttypid;
	attribute->typmod = att->atttypmod;
	TupleDescInitEntry(desc, 1, attribute->name, att->atttypid, att->atttypmod, 0);
	TupleDescInitEntryCollation(desc, 1, att->attcollation);
	attribute->row = HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(desc),
													   &value, &isnull));
	fmgr_info_cxt(F_JSONB_POPULATE_RECORD, &attribute->populate,
				  CurrentMemoryContext);
	fmgr_info_set_expr((Node *) makeFuncExpr(F_JSONB_POPULATE_RECORD, RECORDOID,
											 list_make2(makeNullConst(RECORDOID, -1, InvalidOid),
														makeNullConst(JSONBOID, -1, InvalidOid)),
											 InvalidOid, InvalidOid,
											 COERCE_EXPLICIT_CALL),
					   &attribute->populate);
}

/*
 * Learn the attributes of the composite type, or learn them anew after ALTER
 * TYPE.
 */
static void
learn_attributes(EsPayloadType *type)
{
	TypeCacheEntry *entry = lookup_type_cache(type->type, TYPECACHE_TUPDESC);
	MemoryContext old;

	if (entry->tupDesc == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("type %s is not a composite type", format_type_be(type->type))));
	if (type->identifier == entry->tupDesc_identifier)
		return;

	MemoryContextReset(type->context);
	old = MemoryContextSwitchTo(type->context);
	type->nattributes = 0;
	type->attributes = palloc0(sizeof(Attribute) * Max(entry->tupDesc->natts, 1));
	for (int i = 0; i < entry->tupDesc->natts; i++)
		if (!TupleDescAttr(entry->tupDesc, i)->attisdropped)
			make_attribute(&type->attributes[type->nattributes++],
						   TupleDescAttr(entry->tupDesc, i));
	MemoryContextSwitchTo(old);
	type->identifier = entry->tupDesc_identifier;
}

/*
 * What is to be known of a payload type, in the current memory context.
 */
EsPayloadType *
es_payload_type(Oid oid)
{
	EsPayloadType *type = palloc0(sizeof(EsPayloadType));

	type->type = oid;
	type->context = AllocSetContextCreate(CurrentMemoryContext, "es payload type",
										  ALLOCSET_SMALL_SIZES);
	return type;
}

static bool
has_attribute(const EsPayloadType *type, const JsonbValue *key)
{
	for (int i = 0; i < type->nattributes; i++)
		if (strlen(type->attributes[i].name) == key->val.string.len &&
			memcmp(type->attributes[i].name, key->val.string.val,
				   key->val.string.len) == 0)
			return true;
	return false;
}

static void
check_unknown_keys(const char *command, const EsPayloadType *type, Jsonb *payload)
{
	JsonbIterator *it = JsonbIteratorInit(&payload->root);
	JsonbValue	v;
	JsonbIteratorToken token;

	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY && !has_attribute(type, &v))
			ereport(ERROR,
					(errcode(ERRCODE_ES_COMMAND_REJECTED),
					 errmsg("payload of command \"%s\" has an unknown key \"%.*s\"",
							command, v.val.string.len, v.val.string.val),
					 errdetail("Type %s has no such attribute.",
							   format_type_be(type->type)),
					 errhint("Check the spelling, or add the attribute with ALTER TYPE.")));
	}
}

/*
 * Populate one attribute from its key; a missing key is NULL, which a NOT NULL
 * domain refuses.
 */
static void
populate(Attribute *attribute, Jsonb *payload)
{
	JsonbParseState *state = NULL;
	JsonbValue	key;
	JsonbValue	buffer;
	JsonbValue *value;
	JsonbValue *object;

	key.type = jbvString;
	key.val.string.val = attribute->name;
	key.val.string.len = strlen(attribute->name);
	value = getKeyJsonValueFromContainer(&payload->root, key.val.string.val,
										 key.val.string.len, &buffer);
	if (value == NULL)
	{
		buffer.type = jbvNull;
		value = &buffer;
	}
	(void) pushJsonbValue(&state, WJB_BEGIN_OBJECT, NULL);
	(void) pushJsonbValue(&state, WJB_KEY, &key);
	(void) pushJsonbValue(&state, WJB_VALUE, value);
	object = pushJsonbValue(&state, WJB_END_OBJECT, NULL);
	(void) FunctionCall2(&attribute->populate, attribute->row,
						 JsonbPGetDatum(JsonbValueToJsonb(object)));
}

static void
check_attribute(const char *command, const EsPayloadType *type,
				Attribute *attribute, Jsonb *payload)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		populate(attribute, payload);
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		if (!es_is_rejection(error->sqlerrcode))
			PG_RE_THROW();
		FlushErrorState();
		ereport(ERROR,
				(errcode(ERRCODE_ES_COMMAND_REJECTED),
				 errmsg("payload of command \"%s\" does not fit type %s",
						command, format_type_be(type->type)),
				 errdetail("Key \"%s\": %s.", attribute->name, error->message),
				 errhint("Key \"%s\" must be a valid %s.", attribute->name,
						 format_type_with_typemod(attribute->type,
												  attribute->typmod))));
	}
	PG_END_TRY();
}

/*
 * Refuse (ES002) a payload that does not populate a composite type: an unknown
 * key, a value of the wrong form, a domain's CHECK or NOT NULL that fails.
 */
void
es_check_payload(const char *command, EsPayloadType *type, Jsonb *payload)
{
	learn_attributes(type);
	check_unknown_keys(command, type, payload);
	for (int i = 0; i < type->nattributes; i++)
		check_attribute(command, type, &type->attributes[i], payload);
}
