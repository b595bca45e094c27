/*-------------------------------------------------------------------------
 * notify.c
 *	  Announcing news with NOTIFY.
 *
 * PostgreSQL takes one lock of the whole cluster for the commit of a
 * transaction that notifies.  So no appending transaction does; the scheduler
 * notifies for all that has settled since it did last.
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "commands/async.h"
#include "es.h"
#include "fanout/notify.h"
#include "store/identity.h"

/*
 * Tell the listeners of channel "es" how far the log is settled, when the
 * current transaction commits.
 */
void
es_notify_settled(int64 settled)
{
	Async_Notify("es", psprintf("{\"epoch\":\"%s\",\"position\":" INT64_FORMAT "}",
								es_epoch_text(), settled));
}
