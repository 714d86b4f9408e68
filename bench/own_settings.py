"""The load of `bench/relay --own-settings`: each client sets parameters of its own once, then asks as `pgbench -S` does.

How often a pooler had to set them again, on a connection that another client has had, is counted by the server
(pg_stat_statements), since no pooler tells it."""

from pathlib import Path

from scratch import ROLE, Scratch

# What may be a client's own: the expression for its value, of pgbench's variables.
VALUES = {
    "search_path": "'w' || :client_id::text || ', public'",
    "TimeZone": "'<own' || :client_id::text || '>0'",
}
NAMES = list(VALUES)
# PgBouncer follows what the server reports and it knows; the server reports search_path since version 18 only.
UNKNOWN_TO_PGBOUNCER = {"search_path"}
# What a pooler says: pgleash, and PgBouncer. The clients say `SELECT set_config`.
CHANGES = "query LIKE 'SELECT pg_catalog.set_config(%' OR query ILIKE 'SET %'"


class OwnSettings:
    """Which parameters are each client's own."""

    def __init__(self, names: list[str], scratch: Scratch):
        self.names, self.scratch = names, scratch

    def server_settings(self) -> dict[str, str]:
        return {"shared_preload_libraries": "pg_stat_statements"} if self.names else {}

    def prepare(self) -> None:
        """The server is there."""
        if self.names:
            self.scratch.psql(self.scratch.port, ROLE, "CREATE EXTENSION pg_stat_statements")
            self.path().write_text("\n".join(self.script()) + "\n")
            self.scratch.own(self.path())

    def script(self) -> list[str]:
        # A client's variables outlive its transactions.
        sets = [f"SELECT set_config('{name}', {VALUES[name]}, false);" for name in self.names]
        ask = ["\\set aid random(1, 100000 * :scale)", "SELECT abalance FROM pgbench_accounts WHERE aid = :aid;"]
        return ["\\if :begins", *sets, "\\set begins 0", "\\endif", *ask]

    def path(self) -> Path:
        return self.scratch.dir / "own-settings.pgbench"

    def load(self, scale: int) -> list:
        """What pgbench has to be told."""
        return ["-f", self.path(), "-D", "begins=1", "-D", f"scale={scale}"] if self.names else ["-S"]

    def begin(self) -> None:
        """A run begins."""
        if self.names:
            self.scratch.psql(self.scratch.port, ROLE, "SELECT pg_stat_statements_reset()")

    def changed(self, transactions: int, clients: int) -> float | None:
        """Of a hundred lendings since then, how many changed what was set on the connection."""
        if not self.names:
            return None
        changes = f"SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE {CHANGES}"
        lendings = transactions + clients * len(self.names)
        return 100 * int(self.scratch.psql(self.scratch.port, ROLE, changes)) / lendings

    def known_to(self, target: str) -> bool:
        """Whether a client keeps its own settings through this pooler."""
        return target != "pgbouncer" or not UNKNOWN_TO_PGBOUNCER & set(self.names)

    def note(self) -> str:
        missing = ", ".join(sorted(UNKNOWN_TO_PGBOUNCER & set(self.names)))
        return f"PgBouncer does not follow {missing}: a client would get another's. Its rows are left out."
