"""Async message: nameko, whose RPC and events ride on kombu, between green threads of eventlet."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import eventlet
from nameko.containers import ServiceContainer
from nameko.events import BROADCAST, EventDispatcher, event_handler
from nameko.rpc import RpcProxy, rpc
from nameko.standalone.events import event_dispatcher
from nameko.standalone.rpc import ClusterRpcProxy

from tests.boundaries import Program, boundary

FIRST = "import eventlet; eventlet.monkey_patch()"
CONTRIB = ["opentelemetry.instrumentation.threading:ThreadingInstrumentor"]


def config(b: Program) -> dict[str, Any]:
    return {"AMQP_URI": f"amqp://guest:guest@{b.address('rabbitmq')}//", "serializer": "json"}


def unique(name: str) -> str:
    return f"{name}_{uuid.uuid4().hex[:12]}"


@contextmanager
def running(b: Program, *services: Any) -> Iterator[None]:
    containers = [ServiceContainer(service, config=config(b)) for service in services]
    for container in containers:
        container.start()
    try:
        yield
    finally:
        for container in containers:
            container.stop()


def wait_for(events: list[Any], count: int) -> None:
    with eventlet.Timeout(30):
        while len(events) < count:
            eventlet.sleep(0.01)


@boundary("nameko: RPC, and an error that comes back", needs=("rabbitmq",))
def calls(b: Program) -> None:
    class Service:
        name = unique("orders")

        @rpc
        def work(self, key: str) -> str:
            b.far(key)
            if key == "b":
                raise ValueError(key)
            return key

    with running(b, Service), ClusterRpcProxy(config(b)) as proxy:
        for key in "abc":
            with b.near(key):
                try:
                    proxy[Service.name].work(key)
                except Exception:
                    b.far(key)
        b.clean("after the calls")


@boundary("nameko: RPC by way of another service, asynchronous calls", needs=("rabbitmq",))
def calls_on(b: Program) -> None:
    class Stock:
        name = unique("stock")

        @rpc
        def take(self, key: str) -> str:
            eventlet.sleep(0.01)
            b.far(key)
            return key

    class Orders:
        name = unique("orders")
        stock = RpcProxy(Stock.name)

        @rpc
        def work(self, key: str) -> Any:
            b.far(key)
            answers = [self.stock.take.call_async(key) for _ in "12"]
            found = [answer.result() for answer in answers]
            b.far(key)
            return found

    with running(b, Stock, Orders), ClusterRpcProxy(config(b)) as proxy:
        for key in "ab":
            with b.near(key):
                proxy[Orders.name].work(key)


@boundary("nameko: events, to one of each service and to everybody, that cause more", needs=("rabbitmq",))
def events(b: Program) -> None:
    source, handled = unique("shop"), []

    class Mail:
        name = unique("mail")
        dispatch = EventDispatcher()

        @event_handler(source, "paid")
        def on_paid(self, key: str) -> None:
            b.far(key)
            self.dispatch("sent", key)

    class Audit:
        name = unique("audit")

        @event_handler(source, "paid", handler_type=BROADCAST, reliable_delivery=False)
        def on_paid(self, key: str) -> None:
            b.far(key)
            handled.append(key)

        @event_handler(Mail.name, "sent")
        def on_sent(self, key: str) -> None:
            b.far(key)
            handled.append(key)

    with running(b, Mail, Audit):
        dispatch = event_dispatcher(config(b))
        for key in "ab":
            with b.near(key):
                dispatch(source, "paid", key)
        wait_for(handled, 4)
