\set s random(1, :streams)
SELECT es_submit('DEPOSIT_PLPGSQL', (:s)::text, :payload);
