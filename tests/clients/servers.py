"""The servers behind the client matrix: a throw-away PostgreSQL, and pgleash in front of it."""

import contextlib
import json
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time

# What clients have to know where pgleash asks for a password.
PASSWORD = "a word of passage"


class Postgres:
    """A throw-away server; runs as `postgres` or `nobody` when we are root, which it refuses to be."""

    def __init__(self, work):
        self.bin = self.find_binaries()
        self.dir = work / "postgres"
        self.port = free_port()
        self.owner = None
        if os.geteuid() == 0:
            names = [entry.pw_name for entry in pwd.getpwall()]
            self.owner = "postgres" if "postgres" in names else "nobody"

    @staticmethod
    def find_binaries():
        if "PGLEASH_TEST_PG_BIN" in os.environ:
            return pathlib.Path(os.environ["PGLEASH_TEST_PG_BIN"])
        debian = pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb")
        found = sorted(debian, key=lambda path: int(path.parts[-3])) or [shutil.which("initdb")]
        if not found[-1]:
            sys.exit("no initdb found: install PostgreSQL (Debian: apt-get install postgresql)")
        return pathlib.Path(found[-1]).parent

    def __enter__(self):
        self.dir.mkdir()
        if self.owner:
            shutil.chown(self.dir, self.owner, pwd.getpwnam(self.owner).pw_gid)
        initdb = [self.bin / "initdb", "-D", self.dir / "data", "-A", "trust", "-U", "postgres", "-E", "UTF8"]
        self.run([*initdb, "--no-locale", "--no-sync"], check=True, stdout=subprocess.DEVNULL)
        with open(self.dir / "data/postgresql.conf", "a", encoding="utf-8") as conf:
            conf.write("fsync = off\nsynchronous_commit = off\nfull_page_writes = off\nmax_connections = 600\n")
        self.log = open(self.dir / "log", "wb")
        self.process = self.run(
            [self.bin / "postgres", "-D", self.dir / "data", "-p", str(self.port), "-k", self.dir, "-h", "127.0.0.1"],
            start=True, stdout=self.log, stderr=self.log,
        )
        wait_for_port(self.port, self.process, lambda: (self.dir / "log").read_text(errors="replace"))
        self.sql("postgres", "CREATE ROLE app LOGIN")
        return self

    def run(self, command, start=False, **more):
        more |= {"user": self.owner, "extra_groups": []} if self.owner else {}
        if self.owner:
            more["group"] = pwd.getpwnam(self.owner).pw_gid
        call = subprocess.Popen if start else subprocess.run
        return call([str(word) for word in command], cwd="/", stdin=subprocess.DEVNULL, **more)

    def sql(self, database, sql):
        """One statement as the superuser, directly; returns the rows as text."""
        for _ in range(600):
            command = [self.bin / "psql", "-X", "-At", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", str(self.port)]
            done = subprocess.run(
                [*command, "-U", "postgres", "-d", database, "-c", sql], text=True, capture_output=True
            )
            if "starting up" not in done.stderr:
                break
            time.sleep(0.05)
        if done.returncode != 0:
            raise AssertionError(f"{sql}: {done.stderr}")
        return done.stdout

    def console(self):
        """A psql of the superuser that stays: a line in, its rows out."""
        command = [self.bin / "psql", "-X", "-At", "-q", "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", "-d", "postgres"]
        return subprocess.Popen([str(word) for word in command], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self.log.close()


class Pgleash:
    """The program under test in front of the server."""

    def __init__(self, program, way, mode, size, upstream, work, guarded=False):
        self.program, self.way, self.mode, self.size = program, way, mode, size
        self.upstream, self.work, self.guarded = upstream, work, guarded

    def __enter__(self):
        self.errors = open(self.work / f"{self.way}.err", "w+", encoding="utf-8")
        env = {key: value for key, value in os.environ.items() if not key.startswith("PGLEASH_")} | {
            "PGLEASH_LISTEN": "127.0.0.1:0",
            "PGLEASH_ADMIN": "127.0.0.1:0",
            "PGLEASH_UPSTREAM_URL": f"postgres://app@127.0.0.1:{self.upstream}/postgres",
            "PGLEASH_POOL_MODE": self.mode,
            "PGLEASH_POOL_SIZE": str(self.size),
            "PGLEASH_POOL_WAIT_TIMEOUT": "20s",
            "PGLEASH_EVENTS_LOG": str(self.work / f"{self.way}.events"),
        }
        if self.guarded:
            env |= self.guard()
        self.process = subprocess.Popen(
            [str(self.program)], cwd=self.work, env=env, stdin=subprocess.DEVNULL, stdout=self.errors,
            stderr=self.errors,
        )
        started = self.wait_until_started()
        self.port = int(started["listen"].rsplit(":", 1)[1])
        self.admin = started["admin"]
        return self

    def guard(self):
        """A password for the clients, and a certificate, signed by the authority that they trust, to ask for it over TLS."""
        users, cert, key = (self.work / name for name in ("users.toml", "cert.pem", "key.pem"))
        users.write_text(f'app = "{PASSWORD}"\n')
        users.chmod(0o600)
        authority, signer = authority_of(self.work), self.work / "authority.key"
        request, names = self.work / "request.pem", self.work / "names"
        names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
        openssl("req", "-x509", *NEW_KEY, "-days", "2", "-subj", "/CN=authority", "-keyout", signer, "-out", authority)
        openssl("req", "-new", *NEW_KEY, "-subj", "/CN=localhost", "-keyout", key, "-out", request)
        sign = ["-CA", authority, "-CAkey", signer, "-CAcreateserial", "-extfile", names]
        openssl("x509", "-req", "-in", request, "-days", "2", "-out", cert, *sign)
        return {
            "PGLEASH_AUTH_METHOD": "scram-sha-256", "PGLEASH_AUTH_USERS": str(users),
            "PGLEASH_TLS_CERT": str(cert), "PGLEASH_TLS_KEY": str(key), "PGLEASH_TLS_MODE": "require",
        }

    def wait_until_started(self):
        log = self.work / f"{self.way}.events"
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in log.read_text().splitlines() if log.exists() else []:
                event = json.loads(line) if line.endswith("}") else {}
                if event.get("event") == "started":
                    return event
            time.sleep(0.02)
        self.errors.seek(0)
        self.process.kill()
        sys.exit(f"pgleash does not start in {self.mode} mode: {self.errors.read()}")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self.errors.seek(0)
        said = self.errors.read()
        self.errors.close()
        if code != 0 or "panicked" in said:
            sys.exit(f"pgleash in {self.mode} mode ended with {code}: {said}")


def authority_of(work):
    """The certificate by which clients know pgleash."""
    return work / "authority.pem"


NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port, process, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    sys.exit(f"PostgreSQL does not start: {log()}")
