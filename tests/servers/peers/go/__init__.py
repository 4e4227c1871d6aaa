"""The peer in Go: otel-go's propagators, franz-go for Kafka, amqp091-go for RabbitMQ."""

from __future__ import annotations

from pathlib import Path

from tests.servers import builds
from tests.servers.peers import Peer

FOLDER = Path(__file__).parent
BUILT = builds.cached("go-peer", *(FOLDER / name for name in ("main.go", "rabbitmq.go", "go.mod", "go.sum")))


def available() -> str | None:
    return builds.not_built(BUILT)


def build() -> None:
    builds.build(BUILT, lambda folder: builds.run("go", "build", "-trimpath", "-o", folder / "peer", ".", cwd=FOLDER))


def start(folder: Path) -> Peer:
    return Peer([BUILT / "peer"])
