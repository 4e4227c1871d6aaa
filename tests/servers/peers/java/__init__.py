"""The peer in Java: Brave with its own B3 and Micrometer's W3C propagation, and the clients of Kafka and RabbitMQ."""

from __future__ import annotations

from pathlib import Path

from tests.servers import builds, missing
from tests.servers.peers import Peer

FOLDER = Path(__file__).parent
POM, SOURCE = FOLDER / "pom.xml", FOLDER / "Peer.java"
BUILT = builds.cached("java-peer", POM, SOURCE)


def available() -> str | None:
    return missing("java") or builds.not_built(BUILT)


def build() -> None:
    builds.build(BUILT, _compile)


def start(folder: Path) -> Peer:
    options = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dorg.slf4j.simpleLogger.defaultLogLevel=error"]
    return Peer(["java", *options, "-cp", f"{BUILT}/*:{BUILT}", "Peer"])


def _compile(folder: Path) -> None:
    builds.copy_jars(POM, folder)
    builds.run("javac", "-d", folder, "-cp", f"{folder}/*", SOURCE, cwd=folder)
