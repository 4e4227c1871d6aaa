"""Redis; a restart keeps what was written before."""

from __future__ import annotations

from pathlib import Path

from tests.servers import Server, ask, missing, program, started

VARIABLE = "TRACEFILL_REDIS"
SCHEME = "redis"


class Redis(Server):
    name = "redis"
    url_format = "redis://127.0.0.1:{port}/0"

    def command(self) -> list[str | Path]:
        options = ["--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "yes"]
        return [program("redis-server") or "", *options]

    def answers(self) -> bool:
        return ask(self.port, b"PING\r\n") == b"+PONG\r\n"


SERVER = Redis


def available() -> str | None:
    return missing("redis-server")


def start(folder: Path) -> Redis:
    return started(Redis(folder))
