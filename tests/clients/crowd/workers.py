"""A crowd of workers, each with settings of its own, by Django, psycopg 3 or asyncpg (the first argument).

Each connects as its library does, unchanged, then waits until all are there. It does ten transactions, reads its
settings back in each, and leaves. The connection comes from the PG* variables, the number of workers from
CROWD_WORKERS. Exit code 1 if a worker met an error, or something that is not its own.
"""

import asyncio
import os
import sys
import threading

WORKERS = int(os.environ["CROWD_WORKERS"])
TRANSACTIONS = 10
PATIENCE = 60
LOOK = """
    SELECT place.name, current_setting('search_path'), current_setting('TimeZone'),
        current_setting('statement_timeout'), current_setting('application_name')
    FROM place
"""


def zone(n):
    return f"Etc/GMT{n % 25 - 12:+d}"


def timeout(n):
    """Ten minutes and some milliseconds, so that the server does not say it in minutes."""
    return 600_001 + n


def own(n):
    """What worker `n` has to find. The schema `w<n>` is there, with a table `place` in which its name stands."""
    return (f"w{n}", f"w{n}", zone(n), f"{timeout(n)}ms", f"worker {n}")


def check(n, found):
    assert tuple(found) == own(n), f"worker {n} found {tuple(found)} instead of {own(n)}"


def in_threads(work):
    """Runs a crowd; each worker gets its number, and what to call when it has connected."""
    together, failures = threading.Barrier(WORKERS, timeout=PATIENCE), []

    def one(n):
        try:
            work(n, together.wait)
        except BaseException as error:  # a thread's error is the crowd's
            together.abort()
            failures.append(f"worker {n}: {error!r}")

    threads = [threading.Thread(target=one, args=(n,)) for n in range(WORKERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        # The first is the cause, the rest were only kept from going on.
        sys.exit("\n".join(failures[:3]))


def over_django():
    """Each worker has its own database alias: TIME_ZONE is Django's to set, the rest is said at the login."""
    import django
    from django.conf import settings
    from django.db import connections, models, transaction

    def alias(n):
        options = f"-c search_path=w{n} -c statement_timeout={timeout(n)}"
        return {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ["PGHOST"], "PORT": os.environ["PGPORT"],
            "NAME": os.environ["PGDATABASE"], "USER": os.environ["PGUSER"],
            "TIME_ZONE": zone(n), "OPTIONS": {"application_name": f"worker {n}", "options": options},
        }

    aliases = {str(n): alias(n) for n in range(WORKERS)}
    settings.configure(USE_TZ=True, DATABASES={"default": aliases["0"], **aliases})
    django.setup()

    class Note(models.Model):
        worker = models.IntegerField()
        at = models.DateTimeField(null=True)

        class Meta:
            app_label = "crowd"
            db_table = "note"
            managed = False

    def work(n, together):
        name = str(n)
        connections[name].ensure_connection()
        together()
        for done in range(TRANSACTIONS):
            with transaction.atomic(using=name):
                with connections[name].cursor() as cursor:
                    cursor.execute(LOOK)
                    check(n, cursor.fetchone())
                Note.objects.using(name).create(worker=n)
            assert Note.objects.using(name).filter(worker=n).count() == done + 1
        connections[name].close()

    in_threads(work)


def over_psycopg():
    """Settings are said in a transaction, as psycopg does with everything, and the driver prepares what comes often."""
    import psycopg

    def work(n, together):
        with psycopg.connect(application_name=f"worker {n}") as conn:
            conn.execute(f"SET search_path = w{n}")
            conn.execute("SELECT set_config('TimeZone', %s, false)", [zone(n)])
            conn.execute(f"SET statement_timeout = {timeout(n)}")
            conn.commit()
            together()
            for _ in range(TRANSACTIONS):
                with conn.transaction():
                    check(n, conn.execute(LOOK).fetchone())
                    conn.execute("INSERT INTO note (worker) VALUES (%s)", [n])

    in_threads(work)


async def over_asyncpg():
    """Each worker has a pool of one, which says RESET ALL whenever it takes its connection back."""
    import asyncpg

    arrived, together = [], asyncio.Event()

    async def work(n):
        settings = {"search_path": f"w{n}", "TimeZone": zone(n), "statement_timeout": str(timeout(n))}
        settings["application_name"] = f"worker {n}"
        async with asyncpg.create_pool(min_size=1, max_size=1, server_settings=settings) as pool:
            arrived.append(n)
            if len(arrived) == WORKERS:
                together.set()
            await asyncio.wait_for(together.wait(), PATIENCE)
            for _ in range(TRANSACTIONS):
                async with pool.acquire() as conn:
                    async with conn.transaction():
                        check(n, await conn.fetchrow(LOOK))
                        # A type that the driver has to ask about: it says set_config('jit', ...) around that.
                        assert await conn.fetchval("SELECT ARRAY['sad', 'well']::public.mood[]") == ["sad", "well"]
                        await conn.execute("INSERT INTO note (worker) VALUES ($1)", n)
                    # Gone when the pool takes the connection back.
                    await conn.execute(f"SET work_mem = '{100 + n}MB'")

    await asyncio.gather(*(work(n) for n in range(WORKERS)))


match sys.argv[1]:
    case "django":
        over_django()
    case "psycopg":
        over_psycopg()
    case "asyncpg":
        asyncio.run(over_asyncpg())
