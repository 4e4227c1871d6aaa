"""RabbitMQ, with an `epmd` (Erlang's registry of nodes) of its own, so that none is left behind."""

from __future__ import annotations

from pathlib import Path

from tests.servers import Server, ask, free_port, missing, program, started

VARIABLE = "TRACEFILL_RABBITMQ"
SCHEME = "amqp"

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
METHOD_FRAME = b"\x01"


class RabbitMQ(Server):
    name = "rabbitmq"
    url_format = "amqp://guest:guest@127.0.0.1:{port}/%2F"

    def prepare(self) -> None:
        self.epmd_port, self.distribution_port = free_port(), free_port()
        (self.folder / "enabled_plugins").write_text("[].\n")

    def command(self) -> list[str | Path]:
        return [program("rabbitmq-server") or ""]

    def environment(self) -> dict[str, str]:
        return {
            "RABBITMQ_NODENAME": f"tracefill{self.port}@localhost",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder),
            "RABBITMQ_LOG_BASE": str(self.folder),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "RUNNING_UNDER_SYSTEMD": "true",  # the script then becomes the server, and our signals reach it
            "HOME": str(self.folder),  # of the cookie
            "LANG": "C.UTF-8",
        }

    def answers(self) -> bool:
        return ask(self.port, PROTOCOL_HEADER).startswith(METHOD_FRAME)

    def start(self) -> None:
        self._must_be_ours()
        self._spawn([program("epmd") or ""])
        self._wait_until(lambda: bool(ask(self.epmd_port, NAMES_REQUEST)))
        super().start()


# Two bytes of length, then the letter of the request.
NAMES_REQUEST = b"\x00\x01n"

SERVER = RabbitMQ


def available() -> str | None:
    return missing("rabbitmq-server", "epmd")


def start(folder: Path) -> RabbitMQ:
    return started(RabbitMQ(folder))
