/*-------------------------------------------------------------------------
 * compat.h
 *	  The differences between PostgreSQL versions, and only here.
 *-------------------------------------------------------------------------
 */
#ifndef ES_COMPAT_H
#define ES_COMPAT_H

#include "access/genam.h"
#include "access/xlog.h"
#include "storage/proc.h"
#include "utils/acl.h"
#include "utils/wait_event.h"

#if PG_VERSION_NUM < 150000
#error "es needs PostgreSQL 15 or later"
#endif

#if PG_VERSION_NUM >= 160000
#include "varatt.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_proc.h"
#define es_owns_database(oid)	object_ownercheck(DatabaseRelationId, (oid), GetUserId())
#define es_owns_relation(oid)	object_ownercheck(RelationRelationId, (oid), GetUserId())
#define es_may_execute(oid) \
	(object_aclcheck(ProcedureRelationId, (oid), GetUserId(), ACL_EXECUTE) == ACLCHECK_OK)
#define es_may_use_type(oid) \
	(object_aclcheck(TypeRelationId, (oid), GetUserId(), ACL_USAGE) == ACLCHECK_OK)
#else
#define es_owns_database(oid)	pg_database_ownercheck((oid), GetUserId())
#define es_owns_relation(oid)	pg_class_ownercheck((oid), GetUserId())
#define es_may_execute(oid) \
	(pg_proc_aclcheck((oid), GetUserId(), ACL_EXECUTE) == ACLCHECK_OK)
#define es_may_use_type(oid) \
	(pg_type_aclcheck((oid), GetUserId(), ACL_USAGE) == ACLCHECK_OK)
#endif

/* An index into an array with an element for each backend that can append. */
#if PG_VERSION_NUM >= 170000
#define ES_MY_SLOT		MyProcNumber
#define ES_MY_PROCNO	MyProcNumber
#define ES_MY_LXID		(MyProc->vxid.lxid)
#else
#define ES_MY_SLOT		(MyBackendId - 1)
#define ES_MY_PROCNO	(MyProc->pgprocno)
#define ES_MY_LXID		(MyProc->lxid)
#endif

#if PG_VERSION_NUM >= 180000
#define es_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, NULL, nkeys, 0)
#else
#define es_index_beginscan(heap, index, snapshot, nkeys) \
	index_beginscan(heap, index, snapshot, nkeys, 0)
#endif

/* From 17 on index access methods may have something to put away. */
#if PG_VERSION_NUM >= 170000
#define es_index_insert_cleanup(index, info)	index_insert_cleanup(index, info)
#else
#define es_index_insert_cleanup(index, info)	((void) 0)
#endif

/* From 17 on a worker may connect as a role without LOGIN. */
#if PG_VERSION_NUM >= 170000
#define ES_WORKER_NEEDS_LOGIN	false
#define ES_WORKER_FLAGS			BGWORKER_BYPASS_ROLELOGINCHECK
#else
#define ES_WORKER_NEEDS_LOGIN	true
#define ES_WORKER_FLAGS			0
#endif

/* A lexer that looks into escapes too: jsonb does not take \u0000. */
#if PG_VERSION_NUM >= 170000
#define es_json_lexer(json, len) \
	makeJsonLexContextCstringLen(NULL, json, len, GetDatabaseEncoding(), true)
#define es_lock_held(tag, mode)	LockHeldByMe(tag, mode, false)
#else
#define es_json_lexer(json, len) \
	makeJsonLexContextCstringLen(json, len, GetDatabaseEncoding(), true)
#define es_lock_held(tag, mode)	LockHeldByMe(tag, mode)
#endif

#if PG_VERSION_NUM >= 180000
#define ES_NORETURN				pg_noreturn
#else
#define ES_NORETURN				pg_attribute_noreturn()
#endif

/* What tells whether an updated row needs new index entries; 0: it does not. */
#if PG_VERSION_NUM >= 160000
#define EsUpdateIndexes			TU_UpdateIndexes
#else
#define EsUpdateIndexes			bool
#endif

/* What a check hook keeps for its assign hook, which guc.c frees. */
#if PG_VERSION_NUM >= 160000
#define es_guc_malloc(size)		guc_malloc(LOG, size)
#define es_guc_free(p)			guc_free(p)
#else
#define es_guc_malloc(size)		malloc(size)
#define es_guc_free(p)			free(p)
#endif

/* What our processes wait for, as pg_stat_activity shows it. */
#if PG_VERSION_NUM >= 170000
#define ES_WAIT_EVENT(name)		WaitEventExtensionNew(name)
#else
#define ES_WAIT_EVENT(name)		PG_WAIT_EXTENSION
#endif

/*
 * libpq/libpq.h declares it, which cannot be included where the headers of
 * GSSAPI are not installed.
 */
extern bool pq_check_connection(void);

#if PG_VERSION_NUM >= 180000
#define ES_MODULE_MAGIC			PG_MODULE_MAGIC_EXT(.name = "es", .version = ES_VERSION)
#else
#define ES_MODULE_MAGIC			PG_MODULE_MAGIC
#endif

#endif							/* ES_COMPAT_H */
