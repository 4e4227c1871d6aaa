"""A RabbitMQ of the demo's own, with an `epmd` (Erlang's registry of nodes) of its own, so that none is left behind."""

from __future__ import annotations

import os
from pathlib import Path

from tracefill.demo.processes import Processes, free_port, program

VARIABLE = "TRACEFILL_RABBITMQ"


def address(processes: Processes, folder: Path) -> str:
    """The URL of the RabbitMQ that the environment names, else of one started here. Raises CannotStart."""
    given = os.environ.get(VARIABLE)
    if given:
        return given if "://" in given else f"amqp://{given}"
    return _start(processes, folder)


def _start(processes: Processes, folder: Path) -> str:
    # What is on the PATH may be a wrapper that changes the user; the server's own script lies beside it.
    server = program("rabbitmq-server").resolve().with_name("rabbitmq-server")
    port, epmd_port = free_port(), free_port()
    (folder / "enabled_plugins").write_text("[].\n")
    environment = {
        "RABBITMQ_NODENAME": f"tracefill{port}@localhost",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_DIST_PORT": str(free_port()),
        "RABBITMQ_MNESIA_BASE": str(folder),
        "RABBITMQ_LOG_BASE": str(folder),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(epmd_port),
        "RUNNING_UNDER_SYSTEMD": "true",  # the script then becomes the server, and our signals reach it
        "HOME": str(folder),  # of the cookie
        "LANG": "C.UTF-8",
    }
    processes.start("epmd", "keeper", str(epmd_port), str(program("epmd")), environment=environment)
    processes.wait("epmd")
    processes.start("rabbitmq", "keeper", str(port), str(server), environment=environment)
    processes.wait("rabbitmq")
    return f"amqp://guest:guest@127.0.0.1:{port}/%2F"
