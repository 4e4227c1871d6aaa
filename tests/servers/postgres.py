"""PostgreSQL; whoever connects is let in."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.servers import Server, missing, program, started

VARIABLE = "TRACEFILL_POSTGRES"
SCHEME = "postgresql"


class Postgres(Server):
    name = "postgres"
    url_format = "postgresql://postgres@127.0.0.1:{port}/postgres"
    user_for_root = "postgres"
    stop_signal = signal.SIGINT  # SIGTERM would wait for the clients to go first

    def prepare(self) -> None:
        data = self.folder / "data"
        self.run(program("initdb") or "", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")

    def command(self) -> list[str | Path]:
        data, sockets = self.folder / "data", self.folder
        return [program("postgres") or "", "-D", data, "-k", sockets, "-p", str(self.port), "-c", "fsync=off"]

    def answers(self) -> bool:
        question = [program("pg_isready") or "", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(question, check=False).returncode == 0


SERVER = Postgres


def available() -> str | None:
    return missing("initdb", "postgres", "pg_isready")


def start(folder: Path) -> Postgres:
    return started(Postgres(folder))
