--
-- Definitions that are refused, and tables that projections declare.
--
SET client_min_messages = warning;
CREATE SCHEMA decl;
SET search_path = decl, public;
CREATE TABLE a (stream text PRIMARY KEY, n int);
CREATE TABLE b (stream text);
CREATE TEMP TABLE t (stream text);
CREATE VIEW v AS SELECT 1 AS x;

-- Not every SQL is a projection.
SELECT es_create_projection('p', 'COMMIT');
SELECT es_create_projection('p', 'LISTEN x');
SELECT es_create_projection('p', 'INSERT INTO a SELECT stream, 1 FROM es_batch; ROLLBACK');
SELECT es_create_projection('p', 'CREATE TABLE x ()');
SELECT es_create_projection('p', 'DO $$ BEGIN COMMIT; END $$');
SELECT es_create_projection('p', '');
SELECT es_create_projection('p', 'INSERT INTO missing SELECT 1 FROM es_batch');
-- One that does the same for every batch is pointed out.
SELECT es_create_projection('p', 'INSERT INTO b VALUES (1)', start_after => es_settled());
SELECT es_drop_projection('p');

-- Tables.
SELECT es_create_projection('p', 'SELECT 1 FROM es_batch', tables => '{missing}');
SELECT es_create_projection('p', 'SELECT 1 FROM es_batch', tables => ARRAY[NULL]::regclass[]);
SELECT es_create_projection('p', 'SELECT 1 FROM es_batch', tables => ARRAY[999999::regclass]);
SELECT es_create_projection('p', 'SELECT 1 FROM es_batch', tables => '{v}');
SELECT es_create_projection('p', 'SELECT 1 FROM es_batch', tables => '{t}');
SELECT es_create_projection('p', 'SELECT 1 FROM es_batch', tables => '{es.event}');
SELECT es_create_projection('p', 'SELECT 1 FROM es_batch', tables => '{a}', keys => '{none}');
SELECT es_create_projection('p', 'SELECT 1 FROM es_batch', tables => '{a,b}', keys => '{stream}');
SELECT es_create_projection('p', 'SELECT 1 FROM es_batch', keys => '{stream}');
SELECT es_create_projection('p', 'SELECT 1 FROM es_batch', on_error => 'ignore');
SELECT es_create_projection('p', $$
	INSERT INTO a SELECT stream, 1 FROM es_batch ON CONFLICT (stream) DO UPDATE SET n = a.n + 1
	$$, categories => '{decl}', tables => '{a}', start_after => es_settled());
-- A read model belongs to one projection.
SELECT es_create_projection('q', 'SELECT 1 FROM es_batch', tables => '{b,a}');

-- What a projection keeps is not dropped in passing.
DROP TABLE a;
DROP TABLE a CASCADE;
DROP SCHEMA decl CASCADE;
DROP TABLE b;

-- Altering it: the projection goes on with the new definition.
SELECT version FROM es_append('decl-1', 'T');
SELECT es_wait('p', es_settled(), '60 s');
ALTER TABLE a ALTER COLUMN n TYPE bigint;
ALTER TABLE a ADD COLUMN more text DEFAULT 'm';
ALTER TABLE a DROP CONSTRAINT a_pkey, ADD PRIMARY KEY (stream);
SELECT version FROM es_append('decl-1', 'T');
SELECT es_wait('p', es_settled(), '60 s');
SELECT * FROM a;
-- Where it does not fit any more, the projection stops and says why.
ALTER TABLE a RENAME COLUMN n TO m;
SELECT version FROM es_append('decl-1', 'T');
\set VERBOSITY sqlstate
SELECT es_wait('p', es_settled(), '60 s');
\set VERBOSITY default
SELECT status, last_error FROM es_projections WHERE name = 'p';
ALTER TABLE a RENAME COLUMN m TO n;
SELECT es_resume('p');
SELECT es_wait('p', es_settled(), '60 s');
SELECT * FROM a;

-- Waiting is told of a stop at once, long before the timeout, and by anyone.
TRUNCATE a;
ALTER TABLE a ADD CHECK (n < 1);
SELECT version FROM es_append('decl-1', 'T');
\set VERBOSITY sqlstate
SELECT es_wait('p', es_settled(), '1 day');
SELECT es_wait(es_settled(), '1 day');
\set VERBOSITY default
SELECT es_wait('none', 1);

-- An owner that no worker can connect as.
CREATE ROLE regress_es_nologin NOLOGIN;
SELECT es_grant('regress_es_nologin', 'projector');
SET ROLE regress_es_nologin;
SELECT es_create_projection('n', 'SELECT 1 FROM public.es_batch');
RESET ROLE;
DROP OWNED BY regress_es_nologin;
DROP ROLE regress_es_nologin;

SELECT es_drop_projection('p');
DROP SCHEMA decl CASCADE;
