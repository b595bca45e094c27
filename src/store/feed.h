/*-------------------------------------------------------------------------
 * feed.h
 *	  Whether a subscription brings the log its rows.
 *-------------------------------------------------------------------------
 */
#ifndef ES_STORE_FEED_H
#define ES_STORE_FEED_H

typedef enum EsFeed
{
	ES_FEED_NONE,				/* who appends here makes the log */
	ES_FEED_SYNCING,			/* the tables are at different times */
	ES_FEED_READY,				/* es.settled goes with es.event */
} EsFeed;

extern void es_feed_init(void);
extern EsFeed es_feed(void);
extern void es_feed_forget(void);
extern bool es_feed_may_have_ended(void);

#endif							/* ES_STORE_FEED_H */
