\set s random(1, :streams)
SELECT es_submit('DEPOSIT_SQL', (:s)::text, :payload);
