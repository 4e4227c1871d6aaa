"""Apache Kafka, one node that is broker and controller; its jars come from Maven."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.servers import Server, ask, builds, free_port, missing, started

VARIABLE = "TRACEFILL_KAFKA"
SCHEME = "kafka"

POM = Path(__file__).with_name("pom.xml")
JARS = builds.cached("kafka", POM)

# Any 22 characters of URL-safe base64 name a cluster.
CLUSTER_ID = "tracefillTestsBrokerAA"

# One of everything, no waiting for members that will not come, and sessions that may end within a test.
PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={folder}/data
num.partitions=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=500
"""

# ApiVersions, version 0, without a client id: the one request that a broker of any version answers.
API_VERSIONS = struct.pack(">ihhih", 10, 18, 0, 1, -1)


class Kafka(Server):
    name = "kafka"
    url_format = "kafka://127.0.0.1:{port}"

    def prepare(self) -> None:
        properties = PROPERTIES.format(port=self.port, controller_port=free_port(), folder=self.folder)
        self._properties.write_text(properties)
        self.run(*self._java("kafka.tools.StorageTool"), "format", "-t", CLUSTER_ID, "-c", self._properties)

    def command(self) -> list[str | Path]:
        return [*self._java("kafka.Kafka"), self._properties]

    def answers(self) -> bool:
        return bool(ask(self.port, API_VERSIONS))

    @property
    def _properties(self) -> Path:
        return self.folder / "server.properties"

    def _java(self, main: str) -> list[str | Path]:
        # Compiled once, by the quick compiler: for a broker that lives for seconds the start is what costs.
        options = ["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        return ["java", *options, "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", f"{JARS}/*", main]


SERVER = Kafka


def available() -> str | None:
    return missing("java") or builds.not_built(JARS)


def build() -> None:
    builds.build(JARS, lambda folder: builds.copy_jars(POM, folder))


def start(folder: Path) -> Kafka:
    return started(Kafka(folder))
