--
-- Partitions: n checkpoints, events split by stream.
--
SET client_min_messages = warning;
CREATE TABLE part_sum (stream text PRIMARY KEY, n int NOT NULL, seen bigint[] NOT NULL);

-- The hash is documented and never changes.
SELECT es.stream_partition('order-' || i, 4) AS partition,
	   mod(mod(hashtextextended('order-' || i, 0)::numeric + 18446744073709551616, 18446744073709551616), 4)
		   = es.stream_partition('order-' || i, 4) AS as_documented
  FROM generate_series(1, 6) i;
SELECT es.stream_partition('order-1', 0);

SELECT es_create_projection('part', $$
	INSERT INTO part_sum
	SELECT stream, count(*), array_agg(version ORDER BY version) FROM es_batch GROUP BY stream
	ON CONFLICT (stream) DO UPDATE
		SET n = part_sum.n + excluded.n, seen = part_sum.seen || excluded.seen
	$$, categories => '{part}', partitions => 3, batch_size => 7, start_after => es_settled());
SELECT count(*) FROM generate_series(1, 200) i, LATERAL es_append('part-' || i % 10, 'T');
SELECT es_wait('part', es_settled(), '60 s');

-- Every event once, each stream in order.
SELECT count(*), sum(n) FROM part_sum;
SELECT count(*) FROM part_sum s WHERE seen <> ARRAY(SELECT version FROM es_stream(s.stream));
SELECT name, count(*), sum(events_applied), min(lag_events) FROM es_stat_partitions WHERE name = 'part' GROUP BY 1;
SELECT name, status, partitions, events_applied FROM es_projections WHERE name = 'part';
-- Each event is applied by the partition that its stream belongs to.
SELECT count(*) FROM es_stat_partitions p
 WHERE name = 'part' AND events_applied <> (
	SELECT count(*) FROM es_read(max_count => NULL, category => 'part') e
	 WHERE es.stream_partition(e.stream, 3) = p.partition);

-- Another number of partitions, while events pour in.
SELECT count(*) FROM generate_series(1, 50) i, LATERAL es_append('part-' || i % 10, 'T');
SELECT es_alter_projection('part', partitions => 5);
SELECT count(*) FROM generate_series(1, 50) i, LATERAL es_append('part-' || i % 10, 'T');
SELECT es_alter_projection('part', partitions => 2);
SELECT es_wait('part', es_settled(), '60 s');
SELECT count(*), sum(n) FROM part_sum;
SELECT count(*) FROM part_sum s WHERE seen <> ARRAY(SELECT version FROM es_stream(s.stream));
SELECT partition, lag_events FROM es_stat_partitions WHERE name = 'part' ORDER BY 1;

-- Every projection at once.
SELECT es_wait(es_settled());

SELECT es_alter_projection('part', partitions => 0);
SELECT es_alter_projection('part', partitions => 1000);
SELECT es_create_projection('part2', 'SELECT 1 FROM es_batch', partitions => NULL);
SELECT es_drop_projection('part');
DROP TABLE part_sum;
