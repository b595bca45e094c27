SELECT es_submit('WITHDRAW', '1', '{"amount": 1}');
