"""psycopg 3: prints what it got, which must not depend on what is between it and the server.

The connection comes from the PG* variables. PGLEASH_MODE is direct, session or transaction.
"""

import asyncio
import os
import threading
import time

import psycopg
from psycopg import sql
from psycopg.rows import dict_row


def say(what, value):
    print(f"{what}: {value!r}", flush=True)


def connect(**options):
    return psycopg.connect(application_name="psycopg", **options)


def queries_and_types():
    with connect() as conn:
        say("one", conn.execute("SELECT 1, 'two', NULL, true").fetchone())
        row = conn.execute(
            "SELECT %s::int8, %s::text, %s::bytea, %s::float8, %s::int[], %s::jsonb",
            (2**62, "ß漢", b"\x00\xff", 0.1, [1, None, 3], psycopg.types.json.Json({"a": [1, 2]})),
        ).fetchone()
        say("types", row)
        say("binary", conn.cursor(binary=True).execute("SELECT 42::int4, now() > '2000-01-01'").fetchone())
        say("dict", conn.cursor(row_factory=dict_row).execute("SELECT 1 AS a, 2 AS b").fetchall())
        say("big", len(conn.execute("SELECT repeat('x', 5000000)").fetchone()[0]))
        say("many", sum(n for (n,) in conn.execute("SELECT generate_series(1, 100000)")))


def transactions():
    with connect() as conn:
        conn.execute("CREATE TABLE t (n int PRIMARY KEY, s text)")
    with connect() as conn:
        with conn.transaction():
            conn.execute("INSERT INTO t VALUES (1, 'one')")
            try:
                with conn.transaction():
                    conn.execute("INSERT INTO t VALUES (1, 'again')")
            except psycopg.errors.UniqueViolation as error:
                say("savepoint", error.sqlstate)
        conn.cursor().executemany("INSERT INTO t VALUES (%s, %s)", [(n, str(n)) for n in range(2, 200)])
        say("rowcount", conn.execute("UPDATE t SET s = s || '!' WHERE n > 100").rowcount)
        conn.commit()
        conn.execute("DELETE FROM t")
        conn.rollback()
        say("kept", conn.execute("SELECT count(*), max(s) FROM t").fetchone())


def prepared_statements():
    with connect(prepare_threshold=1) as one, connect(prepare_threshold=1) as two:
        for n in range(12):
            a = one.execute("SELECT %s::int + 1, count(*) FROM t", (n,)).fetchone()
            one.commit()
            b = two.execute("SELECT %s::int * 2, count(*) FROM t WHERE n > %s", (n, n)).fetchone()
            two.commit()
            say("prepared", (a, b))


def pipelines():
    with connect() as conn:
        with conn.pipeline():
            cursors = [conn.execute("SELECT %s::int", (n,)) for n in range(50)]
            say("pipeline", [cursor.fetchone()[0] for cursor in cursors])
        try:
            with conn.pipeline():
                conn.execute("INSERT INTO t VALUES (1000, 'a')")
                conn.execute("SELECT 1/0")
                conn.execute("INSERT INTO t VALUES (1001, 'b')")
        except psycopg.errors.DivisionByZero as error:
            say("pipeline error", error.sqlstate)
        conn.rollback()
        say("after", conn.execute("SELECT count(*) FROM t WHERE n >= 1000").fetchone())


def copies():
    with connect() as conn:
        with conn.cursor().copy("COPY t FROM STDIN") as copy:
            for n in range(2000, 7000):
                copy.write_row((n, f"row {n}"))
        conn.commit()
        with conn.cursor().copy("COPY (SELECT * FROM t WHERE n >= 2000 ORDER BY n) TO STDOUT (FORMAT binary)") as copy:
            copy.set_types(["int4", "text"])
            rows = list(copy.rows())
        say("copied", (len(rows), rows[0], rows[-1]))
        try:
            with conn.cursor().copy("COPY t FROM STDIN") as copy:
                copy.write("not a number\n")
        except psycopg.DataError as error:
            say("copy error", error.sqlstate)
        conn.rollback()
        try:
            with conn.cursor().copy("COPY t FROM STDIN") as copy:
                copy.write("9000\tx\n")
                raise KeyError("changed my mind")
        except KeyError as error:
            say("copy abandoned", str(error))
        conn.rollback()
        say("after", conn.execute("SELECT count(*) FROM t").fetchone())


def cursors():
    with connect() as conn:
        with conn.cursor("reader") as cursor:
            cursor.itersize = 100
            cursor.execute("SELECT n FROM t ORDER BY n LIMIT 1000")
            say("cursor", sum(n for (n,) in cursor))
        with conn.cursor() as cursor:
            say("stream", sum(1 for _ in cursor.stream("SELECT n FROM t ORDER BY n")))


def errors_and_notices():
    with connect(autocommit=True) as conn:
        heard = []
        conn.add_notice_handler(lambda notice: heard.append((notice.severity, notice.message_primary)))
        conn.execute("DO $$ BEGIN RAISE WARNING 'mind the gap'; END $$")
        say("notices", heard)
        for statement in ["SELEC 1", "SELECT * FROM nowhere", "SELECT 1/0", "SELECT 'a'::int"]:
            try:
                conn.execute(statement)
            except psycopg.Error as error:
                say("error", (error.sqlstate, error.diag.message_primary))
        say("alive", conn.execute("SELECT 1").fetchone())


def cancels():
    with connect(autocommit=True) as conn:
        threading.Timer(0.5, conn.cancel).start()
        started = time.monotonic()
        try:
            conn.execute("SELECT pg_sleep(30)")
        except psycopg.errors.QueryCanceled as error:
            say("cancelled", (error.sqlstate, time.monotonic() - started < 10))
        say("alive", conn.execute("SELECT 1").fetchone())


def notifications():
    with connect(autocommit=True) as listener, connect(autocommit=True) as speaker:
        listener.execute("LISTEN news")
        for n in range(3):
            speaker.execute(sql.SQL("NOTIFY news, {}").format(sql.Literal(f"item {n}")))
        heard = [notify.payload for notify in listener.notifies(timeout=10, stop_after=3)]
        say("heard", heard)


def sessions():
    """Two clients with different parameters on the same server connections, by turns."""
    with connect(autocommit=True) as conn:
        conn.execute("CREATE SCHEMA one; CREATE TABLE one.place AS SELECT 'first' AS name")
        conn.execute("CREATE SCHEMA two; CREATE TABLE two.place AS SELECT 'second' AS name")
    look = "SELECT name, current_setting('search_path'), current_setting('TimeZone') FROM place"
    with connect(autocommit=True, options="-c search_path=one") as one, connect(autocommit=True) as two:
        two.execute("SET search_path = two, public")
        two.execute("SET TimeZone = 'Asia/Tokyo'")
        for _ in range(3):
            say("by turns", (one.execute(look).fetchone(), two.execute(look, prepare=True).fetchone()))
        with one.transaction():
            one.execute("SET LOCAL TimeZone = 'Europe/Berlin'")
            one.execute("SET LOCAL search_path = two")
            say("for the transaction", one.execute(look).fetchone())
        say("after it", one.execute(look).fetchone())
        with one.transaction():
            one.execute("CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT generate_series(1, 3) AS n")
            say("temporary", one.execute("SELECT sum(n) FROM mine").fetchone())
            one.execute("SELECT pg_advisory_xact_lock(7)")
            say("locked", two.execute("SELECT pg_try_advisory_xact_lock(7)").fetchone())
        say("unlocked", two.execute("SELECT pg_try_advisory_xact_lock(7), to_regclass('mine')").fetchone())
        two.execute("RESET search_path")
        say("reset", two.execute("SHOW search_path").fetchone())
        two.execute("CREATE TEMP TABLE kept (n int)")
        two.execute("INSERT INTO kept VALUES (1), (2)")
        two.execute("SELECT pg_advisory_lock(8)")
        say("kept", (two.execute("SELECT count(*) FROM kept").fetchone(), one.execute("SELECT pg_try_advisory_lock(8)").fetchone()))


async def many_at_once():
    async def one(n):
        async with await psycopg.AsyncConnection.connect(application_name="psycopg") as conn:
            cursor = await conn.execute("SELECT %s::int * 2 FROM pg_sleep(0.01)", (n,))
            return (await cursor.fetchone())[0]

    say("at once", sum(await asyncio.gather(*(one(n) for n in range(40)))))


def main():
    assert os.environ["PGLEASH_MODE"] in ("direct", "session", "transaction", "guarded")
    for part in (
        queries_and_types,
        transactions,
        prepared_statements,
        pipelines,
        copies,
        cursors,
        errors_and_notices,
        cancels,
        notifications,
        sessions,
    ):
        print(f"-- {part.__name__}")
        part()
    asyncio.run(many_at_once())


main()
