SELECT :version + count(*) AS version,
	   :balance + coalesce(sum(CASE type WHEN 'Deposited' THEN 1 ELSE -1 END * (payload->>'amount')::bigint), 0) AS balance
  FROM es_stream('account-1', :version + 1) \gset
\if :balance >= 1
SELECT append_or_retry(:version, '{"amount": 1}');
\endif
