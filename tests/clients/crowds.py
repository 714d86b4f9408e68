"""Many workers on few connections: what libraries say when they connect pins nobody, and nobody sees another's settings."""

import os
import re
import subprocess
import threading
import time
import urllib.request

from servers import Pgleash

WORKERS = 40
SIZE = 4
TRANSACTIONS = 10
TIMEOUT = 60
# Fewer would not show much.
LOOKS = 20


def crowds(server, program, commands, only, work):
    """Runs each command (by its name) as a crowd on a pool of its own; gives (client, mode, result, seconds, detail)."""
    wanted = {name: command for name, command in commands.items() if only in name}
    if not wanted:
        return []
    with Pgleash(program, "crowd", "transaction", SIZE, server.port, work) as sidecar:
        return [crowd(server, sidecar, name, command) for name, command in wanted.items()]


def crowd(server, sidecar, name, command):
    database = re.sub(r"\W", "_", name.lower())
    server.sql("postgres", f"CREATE DATABASE {database} OWNER app")
    server.sql(database, SCHEMAS)
    started = time.monotonic()
    try:
        with Watch(server, sidecar, database) as watch:
            play(command, sidecar, database)
            watch.until_all_are_gone()
        watch.verdict()
        written = server.sql(database, COUNTS).split()
        expected = [f"w{n}|{n}|{TRANSACTIONS}" for n in range(WORKERS)]
        assert sorted(written) == sorted(expected), f"rows by schema and worker: {written}"
    except (AssertionError, subprocess.SubprocessError) as error:
        detail = f"{error}\n{getattr(error, 'output', '') or ''}"
        return (name, "crowd", "FAILED", time.monotonic() - started, detail)
    return (name, "crowd", "ok", time.monotonic() - started, "")


def play(command, sidecar, database):
    env = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    env |= {"PGHOST": "127.0.0.1", "PGPORT": str(sidecar.port), "PGUSER": "app", "PGDATABASE": database}
    env |= {"PGCONNECT_TIMEOUT": "20", "CROWD_WORKERS": str(WORKERS)}
    done = subprocess.run([str(word) for word in command], env=env, text=True, capture_output=True, timeout=TIMEOUT)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


class Watch:
    """Looks at pins, and at the server's connections, for as long as a crowd is there."""

    def __init__(self, server, sidecar, database):
        self.sidecar, self.database = sidecar, database
        self.psql = server.console()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.keep_looking)
        self.looks, self.clients, self.connections = 0, 0, 0
        self.problems = []

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()
        self.psql.communicate("\\q\n", timeout=10)

    def keep_looking(self):
        while not self.over.wait(0.005):
            try:
                self.look()
            except Exception as error:  # a look that fails must not pass for one that found nothing
                self.problems.append(repr(error))
                return

    def look(self):
        page = self.page()
        pins = self.of_pool(page, "pgleash_pins")
        self.problems += [f"{series} {value}" for series, value in pins.items() if value]
        there = self.connections_at_server()
        clients = page["pgleash_clients"]
        self.clients, self.connections = max(self.clients, clients), max(self.connections, there)
        self.looks += bool(pins) and clients > SIZE

    def page(self):
        with urllib.request.urlopen(f"http://{self.sidecar.admin}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if line and line[0] != "#")
        return {series: float(value) for series, value in samples}

    def of_pool(self, page, name):
        return {
            series: value for series, value in page.items()
            if series.startswith(f"{name}{{") and re.search(rf'pool="[^"]*\b{self.database}\b', series)
        }

    def connections_at_server(self):
        """What the server counts, not what pgleash says."""
        self.psql.stdin.write(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{self.database}';\n")
        self.psql.stdin.flush()
        return int(self.psql.stdout.readline())

    def until_all_are_gone(self):
        """Every client has left, and nobody has kept a connection."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            page = self.page()
            states = self.of_pool(page, "pgleash_pool_connections")
            lent = sum(value for series, value in states.items() if 'state="idle"' not in series)
            if not page["pgleash_clients"] and states and not lent:
                pinned = self.of_pool(page, "pgleash_pins")
                assert pinned and not sum(pinned.values()), f"pins after the crowd: {pinned}"
                return
            self.over.wait(0.02)
        raise AssertionError("after the crowd, clients or checkouts are left")

    def verdict(self):
        assert not self.problems, f"{len(self.problems)} problems in {self.looks} looks: {self.problems[:3]}"
        assert self.looks >= LOOKS, f"only {self.looks} looks while the crowd was there"
        assert self.clients == WORKERS, f"at most {self.clients} of {WORKERS} were there at once"
        assert self.connections <= SIZE, f"{self.connections} server connections for a pool of {SIZE}"


SCHEMAS = f"""
CREATE TYPE mood AS ENUM ('sad', 'well');
DO $$
BEGIN
    FOR n IN 0 .. {WORKERS - 1} LOOP
        EXECUTE format('CREATE SCHEMA w%s AUTHORIZATION app', n);
        EXECUTE format('CREATE TABLE w%1$s.place AS SELECT ''w%1$s'' AS name', n);
        EXECUTE format('CREATE TABLE w%s.note (id bigserial PRIMARY KEY, worker int, at timestamptz)', n);
        EXECUTE format('ALTER TABLE w%s.place OWNER TO app', n);
        EXECUTE format('ALTER TABLE w%s.note OWNER TO app', n);
    END LOOP;
END
$$;
"""

# How many rows of which worker there are in each schema.
COUNTS = " UNION ALL ".join(
    f"SELECT 'w{n}|' || worker || '|' || count(*) FROM w{n}.note GROUP BY worker" for n in range(WORKERS)
)
