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
#include "miscadmin.h"
#include "nodes/makefuncs.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/syscache.h"
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
 * An attribute of a composite type.
 */
typedef struct Attribute
{
	char	   *name;
	Oid			type;
	int32		typmod;
	Datum		row;			/* a row of it alone, with a NULL in it */
	struct Composite *composite;	/* what it is made of, maybe in arrays; or NULL */
} Attribute;

/*
 * A composite type, as it was when we learned it.
 */
typedef struct Composite
{
	Oid			type;
	uint64		identifier;		/* of the tuple descriptor this was made of */
	int			nattributes;
	Attribute  *attributes;
	struct Composite *next;		/* the list of all that were learned with it */
} Composite;

struct EsPayloadType
{
	Oid			type;
	MemoryContext parent;		/* where what we learn is kept */
	MemoryContext context;		/* of the rest, or NULL */
	Composite  *composites;		/* the payload's type is the last */
	Node	   *call;			/* of jsonb_populate_record() */
};

static Composite *learn_composite(Composite **list, Oid type);

/*
 * The composite type that a value of some type holds: itself, or the element
 * of an array, through all domains; or NULL.
 */
static Composite *
composite_in(Composite **list, Oid type)
{
	for (;;)
	{
		Oid			base = getBaseType(type);
		Oid			element = get_base_element_type(base);

		if (OidIsValid(element))
			type = element;
		else
			return get_typtype(base) == TYPTYPE_COMPOSITE
				? learn_composite(list, base) : NULL;
	}
}

static void
learn_attribute(Composite **list, Attribute *attribute, Form_pg_attribute att)
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
	attribute->composite = composite_in(list, att->atttypid);
}

/*
 * Learn a composite type and those that it holds.  (None holds itself.)
 */
static Composite *
learn_composite(Composite **list, Oid type)
{
	TupleDesc	desc = lookup_rowtype_tupdesc_copy(type, -1);
	Composite  *composite = palloc0(sizeof(Composite));

	check_stack_depth();
	composite->type = type;
	composite->identifier = assign_record_type_identifier(type, -1);
	composite->attributes = palloc0(sizeof(Attribute) * Max(desc->natts, 1));
	for (int i = 0; i < desc->natts; i++)
		if (!TupleDescAttr(desc, i)->attisdropped)
			learn_attribute(list, &composite->attributes[composite->nattributes++],
							TupleDescAttr(desc, i));
	composite->next = *list;
	*list = composite;
	return composite;
}

/*
 * Whether no ALTER TYPE has changed any of the types since.
 */
static bool
is_current(const EsPayloadType *type)
{
	if (type->context == NULL)
		return false;
	for (Composite *c = type->composites; c != NULL; c = c->next)
		if (c->identifier != assign_record_type_identifier(c->type, -1))
			return false;
	return true;
}

/*
 * Learn the types, or learn them anew.  What was known may be in use further
 * up the stack and lives on to the end of the transaction.
 */
static Composite *
learn(const char *command, EsPayloadType *type)
{
	MemoryContext context;
	MemoryContext old;
	Composite  *list = NULL;

	if (!SearchSysCacheExists1(TYPEOID, ObjectIdGetDatum(type->type)))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("the payload type of command \"%s\" does not exist", command),
				 errdetail("It was dropped."),
				 errhint("Drop the command and create it again with another type.")));
	if (is_current(type))
		return type->composites;

	context = AllocSetContextCreate(CurrentMemoryContext, "es payload type",
									ALLOCSET_SMALL_SIZES);
	old = MemoryContextSwitchTo(context);
	(void) learn_composite(&list, type->type);
	type->call = (Node *) makeFuncExpr(F_JSONB_POPULATE_RECORD, RECORDOID,
									   list_make2(makeNullConst(RECORDOID, -1, InvalidOid),
												  makeNullConst(JSONBOID, -1, InvalidOid)),
									   InvalidOid, InvalidOid,
									   COERCE_EXPLICIT_CALL);
	MemoryContextSwitchTo(old);
	MemoryContextSetParent(context, type->parent);
	if (type->context)
		MemoryContextSetParent(type->context, TopTransactionContext);
	type->context = context;
	type->composites = list;
	return list;
}

/*
 * What is to be known of a payload type, in the current memory context.
 */
EsPayloadType *
es_payload_type(Oid oid)
{
	EsPayloadType *type = palloc0(sizeof(EsPayloadType));

	type->type = oid;
	type->parent = CurrentMemoryContext;
	return type;
}

static Attribute *
attribute_of(const Composite *composite, const JsonbValue *key)
{
	for (int i = 0; i < composite->nattributes; i++)
		if (strlen(composite->attributes[i].name) == key->val.string.len &&
			memcmp(composite->attributes[i].name, key->val.string.val,
				   key->val.string.len) == 0)
			return &composite->attributes[i];
	return NULL;
}

/*
 * Refuse keys that a composite type does not have, in an object or in those of
 * an array.  "path" is where that lies in the payload, with a dot behind it.
 */
static void
check_keys(const char *command, const Composite *composite,
		   JsonbContainer *container, const char *path)
{
	JsonbIterator *it = JsonbIteratorInit(container);
	Attribute  *attribute = NULL;
	JsonbValue	v;
	JsonbIteratorToken token;

	check_stack_depth();
	while ((token = JsonbIteratorNext(&it, &v, true)) != WJB_DONE)
	{
		if (token == WJB_KEY)
		{
			attribute = attribute_of(composite, &v);
			if (attribute == NULL)
				ereport(ERROR,
						(errcode(ERRCODE_ES_COMMAND_REJECTED),
						 errmsg("payload of command \"%s\" has an unknown key \"%s%.*s\"",
								command, path, v.val.string.len, v.val.string.val),
						 errdetail("Type %s has no such attribute.",
								   format_type_be(composite->type)),
						 errhint("Check the spelling, or add the attribute with ALTER TYPE.")));
		}
		else if (token == WJB_VALUE && v.type == jbvBinary && attribute->composite)
			check_keys(command, attribute->composite, v.val.binary.data,
					   psprintf("%s%s.", path, attribute->name));
		else if (token == WJB_ELEM && v.type == jbvBinary)
			check_keys(command, composite, v.val.binary.data, path);
	}
}

/*
 * Populate one attribute from its key; a missing key is NULL, which a NOT NULL
 * domain refuses.
 *
 * Each time with an FmgrInfo of its own: the CHECK of a domain may be a function
 * in SQL, of which the remarks in validate() hold.
 */
static void
populate(const EsPayloadType *type, Attribute *attribute, Jsonb *payload)
{
	JsonbParseState *state = NULL;
	JsonbValue	key;
	JsonbValue	buffer;
	JsonbValue *value;
	JsonbValue *object;
	FmgrInfo	function;

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
	fmgr_info(F_JSONB_POPULATE_RECORD, &function);
	fmgr_info_set_expr(type->call, &function);
	(void) FunctionCall2(&function, attribute->row,
						 JsonbPGetDatum(JsonbValueToJsonb(object)));
}

static void
check_attribute(const char *command, const EsPayloadType *type,
				Attribute *attribute, Jsonb *payload)
{
	MemoryContext context = CurrentMemoryContext;

	PG_TRY();
	{
		populate(type, attribute, payload);
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
	Composite  *composite = learn(command, type);
	MemoryContext context = AllocSetContextCreate(CurrentMemoryContext,
												  "es payload",
												  ALLOCSET_SMALL_SIZES);
	MemoryContext old = MemoryContextSwitchTo(context);

	check_keys(command, composite, &payload->root, "");
	for (int i = 0; i < composite->nattributes; i++)
		check_attribute(command, type, &composite->attributes[i], payload);
	MemoryContextSwitchTo(old);
	MemoryContextDelete(context);
}
