"""asyncpg: prints what it got, which must not depend on what is between it and the server.

The connection comes from the PG* variables.
"""

import asyncio
import datetime
import io

import asyncpg


def say(what, value):
    print(f"{what}: {value!r}", flush=True)


async def connect(**settings):
    return await asyncpg.connect(server_settings={"application_name": "asyncpg"} | settings)


async def queries_and_types(conn):
    say("one", tuple(await conn.fetchrow("SELECT 1, 'two', NULL, true")))
    row = await conn.fetchrow(
        "SELECT $1::int8, $2::text, $3::bytea, $4::float8, $5::int[], $6::date",
        2**62, "ß漢", b"\x00\xff", 0.1, [1, None, 3], datetime.date(2026, 1, 2),
    )
    say("types", tuple(row))
    say("script", await conn.execute("CREATE TABLE t (n int PRIMARY KEY, s text); INSERT INTO t VALUES (1, 'one')"))
    await conn.executemany("INSERT INTO t VALUES ($1, $2)", [(n, str(n)) for n in range(2, 500)])
    say("count", await conn.fetchval("SELECT count(*) FROM t"))
    say("big", len(await conn.fetchval("SELECT repeat('x', 5000000)")))


async def statements_and_cursors(conn):
    statement = await conn.prepare("SELECT n, s FROM t WHERE n > $1 ORDER BY n LIMIT 3")
    say("prepared", [[tuple(row) for row in await statement.fetch(n)] for n in (0, 100, 498)])
    async with conn.transaction():
        total = 0
        async for row in conn.cursor("SELECT n FROM t ORDER BY n", prefetch=50):
            total += row["n"]
        say("cursor", total)


async def transactions(conn):
    try:
        async with conn.transaction():
            await conn.execute("INSERT INTO t VALUES (1000, 'gone')")
            try:
                async with conn.transaction():
                    await conn.execute("INSERT INTO t VALUES (1, 'twice')")
            except asyncpg.UniqueViolationError as error:
                say("savepoint", error.sqlstate)
            raise KeyError("changed my mind")
    except KeyError:
        say("rolled back", await conn.fetchval("SELECT count(*) FROM t WHERE n = 1000"))


async def copies(conn):
    rows = [(n, f"row {n}") for n in range(2000, 7000)]
    say("copied in", await conn.copy_records_to_table("t", records=rows))
    out = io.BytesIO()
    say("copied out", await conn.copy_from_query("SELECT * FROM t WHERE n >= $1 ORDER BY n", 2000, output=out))
    say("text", (len(out.getvalue()), out.getvalue()[:30]))


async def errors(conn):
    for sql in ("SELEC 1", "SELECT * FROM nowhere", "SELECT 1/0", "SELECT 'a'::int"):
        try:
            await conn.fetch(sql)
        except asyncpg.PostgresError as error:
            say("error", (error.sqlstate, error.message))
    try:
        await conn.fetch("SELECT pg_sleep(30)", timeout=0.5)
    except asyncio.TimeoutError:
        say("timed out, and cancelled", await conn.fetchval("SELECT 1"))


async def notifications(conn):
    heard = asyncio.Queue()
    await conn.add_listener("news", lambda _conn, _pid, channel, payload: heard.put_nowait((channel, payload)))
    speaker = await connect()
    for n in range(3):
        await speaker.execute(f"NOTIFY news, 'item {n}'")
    say("heard", [await asyncio.wait_for(heard.get(), 10) for _ in range(3)])
    await speaker.close()


async def sessions():
    """Two clients with different parameters on the same server connections, by turns."""
    one, two = await connect(search_path="one"), await connect(options="-c search_path=two,public -c work_mem=5MB")
    for schema in ("one", "two"):
        await one.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.place AS SELECT '{schema}' AS name")
    await two.execute("SET TimeZone = 'Asia/Tokyo'")
    sql = "SELECT name, current_setting('search_path'), current_setting('TimeZone'), current_setting('work_mem') FROM place"
    looks = [await conn.prepare(sql) for conn in (one, two)]
    for _ in range(3):
        say("by turns", [tuple(await look.fetchrow()) for look in looks])
    async with one.transaction():
        await one.execute("SET LOCAL TimeZone = 'Europe/Berlin'")
        say("for the transaction", await one.fetchval("SHOW TimeZone"))
        await one.execute("CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT generate_series(1, 3) AS n")
        say("temporary", await one.fetchval("SELECT sum(n) FROM mine"))
        await one.execute("SELECT pg_advisory_xact_lock(7)")
        say("locked", await two.fetchval("SELECT pg_try_advisory_xact_lock(7)"))
    say("after it", (await one.fetchval("SHOW TimeZone"), await two.fetchval("SELECT pg_try_advisory_xact_lock(7)")))
    say("by turns", [tuple(await look.fetchrow()) for look in looks])
    # As the driver's own pool does between two borrowers.
    await two.reset()
    say("reset", tuple(await two.fetchrow("SELECT current_setting('search_path'), current_setting('TimeZone')")))
    await one.close()
    await two.close()


async def pools():
    async with asyncpg.create_pool(min_size=2, max_size=8, server_settings={"application_name": "asyncpg"}) as pool:
        doubled = await asyncio.gather(*(pool.fetchval("SELECT $1::int * 2 FROM pg_sleep(0.01)", n) for n in range(60)))
        say("pool", sum(doubled))


async def main():
    conn = await connect()
    for part in (queries_and_types, statements_and_cursors, transactions, copies, errors, notifications):
        print(f"-- {part.__name__}")
        await part(conn)
    await conn.close()
    await sessions()
    await pools()


asyncio.run(main())
