"""Scratch servers for the bench and the board check: on free ports of 127.0.0.1, as an unprivileged user, in a
temporary directory; all of it is gone when the caller's ExitStack is closed. Standard library only."""

import contextlib
import glob
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Database role and database.
ROLE = "bench"


class Failure(Exception):
    """Something went wrong that the person who runs the script should read in one line."""


class Scratch:
    """A temporary directory and the servers that live in it."""

    def __init__(self, cleanup: contextlib.ExitStack):
        self.cleanup = cleanup
        self.user = unprivileged_user()
        self.bin = postgres_bin()
        self.port = 0
        self.dir = Path(tempfile.mkdtemp(prefix="pgleash-bench-"))
        self.cleanup.callback(shutil.rmtree, self.dir, ignore_errors=True)
        self.own(self.dir)

    def start_postgres(self, **settings) -> subprocess.Popen:
        """A PostgreSQL that keeps disk and background work out of the way; `port` is where it listens."""
        data = self.dir / "data"
        self.run([self.bin / "initdb", "-D", data, "-U", ROLE, "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C"])
        self.port = free_port()
        settings = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": 300,
            "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "jit": "off",
        } | settings
        arguments = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        # SIGINT is Postgres's fast shutdown.
        process = self.spawn("postgres", [self.bin / "postgres", "-D", data, *arguments], stop=signal.SIGINT)
        self.wait_for("postgres", self.port, "postgres")
        self.psql(self.port, "postgres", f"CREATE DATABASE {ROLE}")
        return process

    def start_pgleash(self, name: str, binary: str, config: list[str], admin: str = "127.0.0.1:0",
                      under: tuple = ()) -> tuple[subprocess.Popen, dict]:
        """A pgleash in front of our PostgreSQL on free ports, with more lines of configuration; and its `started` event.
        `under` is a command that runs it, such as a profiler."""
        if not os.access(binary, os.X_OK):
            raise Failure(f"{binary} is not there: build it with 'cargo build --release'")
        # A copy: the unprivileged user may not reach the original, and a rebuild must not change it under the run.
        copy = self.dir / "pgleash"
        if not copy.exists():
            shutil.copy2(binary, copy)
            copy.chmod(0o755)
            self.own(copy)
        path = self.write(f"{name}.toml", "\n".join([
            'listen = "127.0.0.1:0"', f'admin = "{admin}"',
            f'upstream.url = "postgres://{ROLE}@127.0.0.1:{self.port}/{ROLE}?sslmode=disable"', *config,
        ]) + "\n")
        process = self.spawn(name, [*under, copy, "run", "--config", path])
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and process.poll() is None:
            started = [event for event in self.events(name) if event.get("event") == "started"]
            if started:
                return process, started[0]
            time.sleep(0.05)
        raise Failure(f"{name} did not start: {self.log_tail(name)}")

    def events(self, name: str) -> list[dict]:
        """The event lines that a pgleash has written so far."""
        events = []
        for line in (self.dir / f"{name}.log").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
        return events

    def own(self, path: Path) -> None:
        if self.user:
            os.chown(path, self.user.pw_uid, self.user.pw_gid)

    def write(self, name: str, text: str) -> Path:
        path = self.dir / name
        path.write_text(text)
        self.own(path)
        return path

    def identity(self) -> dict:
        if not self.user:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def environment(self) -> dict[str, str]:
        # None of the caller's PG* or PGLEASH_* settings may leak into the bench.
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
        return kept | {"HOME": str(self.dir), "LC_ALL": "C"}

    def run(self, command: list, **more) -> str:
        done = subprocess.run([str(part) for part in command], cwd=self.dir, env=self.environment(), text=True,
                              capture_output=True, check=False, **self.identity(), **more)
        if done.returncode != 0:
            raise Failure(f"{Path(str(command[0])).name} exited {done.returncode}: {(done.stderr or done.stdout).strip()[-600:]}")
        return done.stdout

    def spawn(self, name: str, command: list, stop: int = signal.SIGTERM, group: bool = False) -> subprocess.Popen:
        """Starts a process whose output is NAME.log, and ends it, or with `group` it and its children, at the end."""
        with open(self.dir / f"{name}.log", "wb") as log:
            process = subprocess.Popen([str(part) for part in command], cwd=self.dir, env=self.environment(), stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log, start_new_session=True, **self.identity())
        self.cleanup.callback(stop_process, process, stop, group)
        return process

    def log_tail(self, name: str) -> str:
        return (self.dir / f"{name}.log").read_text(errors="replace").strip()[-600:] or "its log is empty"

    def conninfo(self, port: int) -> list:
        return ["-h", "127.0.0.1", "-p", port, "-U", ROLE]

    def psql(self, port: int, database: str, statement: str) -> str:
        return self.run([self.bin / "psql", *self.conninfo(port), "-d", database, "-XAtqc", statement])

    def wait_for(self, name: str, port: int, database: str) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self.psql(port, database, "SELECT 1")
                return
            except Failure as failure:
                if time.monotonic() > deadline:
                    raise Failure(f"{name} on port {port} does not answer: {failure}") from failure
                time.sleep(0.1)


def say(text: str) -> None:
    """Progress, for a person."""
    print(f"[{Path(sys.argv[0]).name}] {text}", file=sys.stderr, flush=True)


def unprivileged_user() -> pwd.struct_passwd | None:
    """PostgreSQL and PgBouncer refuse to run as root: whom to run them as, or None for ourselves."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Failure("run as root, and there is neither a 'postgres' nor a 'nobody' user to run the servers as")


def postgres_bin() -> Path:
    """The newest PostgreSQL with initdb and pgbench; Debian keeps them off PATH."""
    on_path = shutil.which("initdb")
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[4]))
    initdb = on_path or (found[-1] if found else None) or install("postgresql", "/usr/lib/postgresql/*/bin/initdb")
    directory = Path(initdb).resolve().parent
    if not (directory / "pgbench").exists():
        raise Failure(f"there is no pgbench beside {initdb}; install PostgreSQL's contrib programs")
    return directory


def install(package: str, pattern: str) -> str:
    """Installs a Debian package without letting it start its service; gives the path that matches `pattern`."""
    if not shutil.which("apt-get"):
        raise Failure(f"{package} is not installed and there is no apt-get here; install it and run again")
    say(f"installing Debian's {package}")
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    policy = Path("/usr/sbin/policy-rc.d")
    ours = not policy.exists()
    if ours:  # 101 is 'action forbidden': keeps the package from starting its service
        subprocess.run([*sudo, "tee", policy], input=b"#!/bin/sh\nexit 101\n", stdout=subprocess.DEVNULL, check=True)
        subprocess.run([*sudo, "chmod", "755", policy], check=True)
    try:
        for arguments in (["update"], ["install", "-y", "--no-install-recommends", package]):
            command = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", *arguments]
            if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
                raise Failure(f"'apt-get {' '.join(arguments)}' failed")
    finally:
        if ours:
            subprocess.run([*sudo, "rm", "-f", policy], check=False)
    found = sorted(glob.glob(pattern))
    if not found:
        raise Failure(f"{package} was installed, but {pattern} is not there")
    return found[-1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop_process(process: subprocess.Popen, how: int, group: bool) -> None:
    if group:  # its own, since each is started in a new session
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
