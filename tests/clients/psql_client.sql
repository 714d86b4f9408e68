-- psql: run with ON_ERROR_STOP off, its whole output compared.
\set VERBOSITY verbose
\pset pager off
SELECT 1 AS a, 'two' AS b, NULL AS c;
SELECT 1 AS first \; SELECT 2 AS second;
CREATE TABLE t (n int PRIMARY KEY, s text);
INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 500) g;
\d t
\dt
BEGIN;
INSERT INTO t VALUES (501, 'kept');
SAVEPOINT s;
INSERT INTO t VALUES (501, 'twice');
ROLLBACK TO s;
COMMIT;
BEGIN;
DELETE FROM t;
ROLLBACK;
SELECT count(*) FROM t;
COPY t FROM STDIN;
1001	copied
1002	copied
\.
COPY t FROM STDIN;
not a number	x
\.
COPY (SELECT * FROM t WHERE n > 1000 ORDER BY n) TO STDOUT;
\copy (SELECT n FROM t ORDER BY n LIMIT 3) TO STDOUT CSV HEADER
SELECT n, s FROM t ORDER BY n LIMIT 2 \gx
SELECT format('SELECT %s AS generated', g) FROM generate_series(1, 3) g \gexec
SELECT max(n) AS top FROM t \gset
\echo :top
\set FETCH_COUNT 50
SELECT count(*) FROM (SELECT * FROM t ORDER BY n) x;
SELECT n FROM t ORDER BY n LIMIT 120;
\unset FETCH_COUNT
DO $$ BEGIN RAISE NOTICE 'mind the gap'; END $$;
SELECT 1/0;
SELEC 1;
SELECT * FROM nowhere;
SELECT 'still here' AS alive;
BEGIN;
SET LOCAL statement_timeout = '100ms';
SELECT pg_sleep(30);
ROLLBACK;
SELECT length(repeat('x', 3000000)) AS big;
-- Large objects are read and written with function calls.
\lo_import `echo "$LARGE_OBJECT_FILE"` 'a comment'
\lo_export :LASTOID `echo "$LARGE_OBJECT_FILE.out"`
SELECT length(lo_get(:LASTOID)) AS large;
\lo_unlink :LASTOID
BEGIN;
DECLARE c CURSOR FOR SELECT n FROM t ORDER BY n;
FETCH 3 FROM c;
MOVE 10 FROM c;
FETCH 1 FROM c;
COMMIT;
PREPARE plan (int) AS SELECT s FROM t WHERE n = $1;
EXECUTE plan (7);
DEALLOCATE plan;
CREATE TEMP TABLE mine AS SELECT 42 AS answer;
SELECT answer FROM mine;
BEGIN;
SET LOCAL TimeZone = 'Asia/Tokyo';
SHOW TimeZone;
CREATE TEMP TABLE for_now ON COMMIT DROP AS SELECT 1 AS n;
SELECT pg_advisory_xact_lock(7);
SELECT mode, granted FROM pg_locks WHERE locktype = 'advisory';
COMMIT;
SHOW TimeZone;
SELECT to_regclass('for_now') AS gone, count(*) AS locks FROM pg_locks WHERE locktype = 'advisory';
LISTEN news;
NOTIFY news, 'it works';
UNLISTEN *;
CREATE SCHEMA aside;
CREATE TABLE aside.place AS SELECT 'aside' AS name;
SET search_path = aside, public;
SELECT name FROM place;
SET DateStyle = 'German';
SELECT date '2026-01-02';
\connect "options='-c search_path=aside -c DateStyle=SQL'"
SELECT name, date '2026-01-02' FROM place;
RESET ALL;
SHOW search_path;
SET work_mem = '9MB';
SHOW work_mem;
RESET work_mem;
SHOW work_mem;
