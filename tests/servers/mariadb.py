"""MariaDB, with an empty database `tracefill`; root needs no password."""

from __future__ import annotations

from pathlib import Path

from tests.servers import Server, ask, missing, program, started

VARIABLE = "TRACEFILL_MYSQL"
SCHEME = "mysql"

PROTOCOL_VERSION = 10


class MariaDB(Server):
    name = "mariadb"
    url_format = "mysql://root@127.0.0.1:{port}/tracefill"
    user_for_root = "mysql"

    def prepare(self) -> None:
        (self.folder / "init.sql").write_text("CREATE DATABASE IF NOT EXISTS tracefill;\n")
        install = program("mariadb-install-db") or ""
        options = ["--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal"]
        self.run(install, *options, f"--datadir={self.folder}/data")

    def command(self) -> list[str | Path]:
        return [
            program("mariadbd") or "",
            "--no-defaults",
            f"--datadir={self.folder}/data",
            f"--socket={self.folder}/socket",
            f"--init-file={self.folder}/init.sql",
            "--bind-address=127.0.0.1",
            f"--port={self.port}",
        ]

    def answers(self) -> bool:
        return ask(self.port)[4:5] == bytes([PROTOCOL_VERSION])  # behind three bytes of length and one of sequence


SERVER = MariaDB


def available() -> str | None:
    return missing("mariadbd", "mariadb-install-db")


def start(folder: Path) -> MariaDB:
    return started(MariaDB(folder))
