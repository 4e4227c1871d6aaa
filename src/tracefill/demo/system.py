"""The shop in one mode: all its processes, started in order, and what tells them where the others are."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from tracefill.demo import shop
from tracefill.demo.processes import Processes, free_port
from tracefill.demo.servers import Servers

SETTINGS = {
    "stock": {},
    "tracefill": {"OTEL_PROPAGATORS": "tracefill", "OTEL_PYTHON_CONTEXT": "tracefill"},
}


@dataclass
class System:
    """Where to find the shop: `entrance` for those outside, `gateway` for those inside; what it does, and writes down."""

    entrance: str
    gateway: str
    database: Path
    tables: list[str]
    steps: list[str]


def start(processes: Processes, mode: str, folder: Path, servers: Servers) -> System:
    """The shop, running. Raises CannotStart."""
    run = uuid.uuid4().hex[:8]
    gateway = _address()
    environment = {
        **SETTINGS[mode],
        "SHOP_MODE": mode,
        "SHOP_SPANS": str(folder),
        "SHOP_DATABASE": str(folder / "shop.sqlite"),
        "SHOP_GATEWAY": gateway,
        "SHOP_ORDERS": _address(),
        "SHOP_PRICING": _address(),
        "SHOP_QUEUE": f"notifications.{run}" if os.environ.get("TRACEFILL_RABBITMQ") else "notifications",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **_broker(processes, run),
    }
    left_out = set() if servers.rabbitmq else {"mailer", "notifications", "send mail"}
    if servers.rabbitmq:
        environment["SHOP_RABBITMQ"] = servers.rabbitmq
    shop.create_tables(environment["SHOP_DATABASE"])
    names = [name for name in shop.SERVICES if name not in left_out]
    for name in names:
        processes.start(name, "service", name, environment=environment)
    for name in names:
        processes.wait(name)
    return System(
        f"http://{servers.entrance(processes, folder, gateway)}",
        f"http://{gateway}",
        folder / "shop.sqlite",
        tables=[name for name in shop.TABLES if name not in left_out],
        steps=[name for name in shop.STEPS if name not in left_out],
    )


def _broker(processes: Processes, run: str) -> dict[str, str]:
    """The broker that the environment names, with a topic of our own there; else the one inside librdkafka."""
    address = os.environ.get("TRACEFILL_KAFKA")
    if address:
        return {"SHOP_KAFKA": address, "SHOP_TOPIC": f"orders.placed.{run}"}
    processes.start("broker", "broker", environment={})
    return {"SHOP_KAFKA": processes.wait("broker"), "SHOP_KAFKA_IS_MOCK": "1", "SHOP_TOPIC": "orders.placed"}


def _address() -> str:
    return f"127.0.0.1:{free_port()}"
