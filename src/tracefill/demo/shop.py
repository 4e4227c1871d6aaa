"""The services of the shop: ordinary code, as any team would write it. None of it names tracefill or touches propagation.

    storefronts --HTTP--> gateway --HTTP--> orders --pool, queue worker--> Kafka --> warehouse --> SQLite
                                            orders --timer--> SQLite

To add a layer, add a service here: a function that serves until `stop` is set, and its row in SERVICES.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
import uvicorn
from kafka import KafkaConsumer, KafkaProducer
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

TOPIC = "orders.placed"
REMINDER_SECONDS = 0.2

_tracer = trace.get_tracer("shop")
_log = logging.getLogger("shop")


def gateway(stop: threading.Event) -> None:
    """Takes orders from outside and hands them on."""
    session = requests.Session()

    def place(request: Request) -> JSONResponse:
        order = {"order_no": request.path_params["order_no"]}
        answer = session.post(f"{os.environ['SHOP_ORDERS']}/orders", json=order, timeout=10)
        return JSONResponse(answer.json(), answer.status_code)

    _serve([Route("/orders/{order_no}", place, methods=["POST"])], "SHOP_GATEWAY", stop)


def orders(stop: threading.Event) -> None:
    """Checks an order in a pool, hands it to a worker that publishes it, and sets a timer for the reminder."""
    pool = ThreadPoolExecutor(4)
    outbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
    publisher = threading.Thread(target=_publish, args=(outbox,), name="publisher")
    publisher.start()

    def check(order: dict[str, Any]) -> dict[str, Any]:
        with _tracer.start_as_current_span("check stock"):
            return {**order, "price": 7 * len(order["order_no"])}

    async def accept(request: Request) -> JSONResponse:
        order = await request.json()
        return await _in_thread(place, order)

    def place(order: dict[str, Any]) -> JSONResponse:
        checked = pool.submit(check, order).result()
        outbox.put(checked)
        threading.Timer(REMINDER_SECONDS, _remind, args=(order["order_no"],)).start()
        return JSONResponse(checked, 202)

    _serve([Route("/orders", accept, methods=["POST"])], "SHOP_ORDERS", stop)
    outbox.put(None)
    publisher.join()
    pool.shutdown()


async def _in_thread(function: Callable[..., JSONResponse], *arguments: Any) -> JSONResponse:
    from starlette.concurrency import run_in_threadpool

    return await run_in_threadpool(function, *arguments)


def _publish(outbox: queue.Queue[dict[str, Any] | None]) -> None:
    producer = KafkaProducer(**_kafka())
    while (order := outbox.get()) is not None:
        with _tracer.start_as_current_span("publish order"):
            producer.send(TOPIC, json.dumps(order).encode(), headers=[("shop", b"demo")])
    producer.flush(10)
    producer.close(5)


def _remind(order_no: str) -> None:
    with _tracer.start_as_current_span("remind"):
        _execute("insert into reminders values (?)", (order_no,))


def warehouse(stop: threading.Event) -> None:
    """Reads the orders and writes them down."""
    consumer = KafkaConsumer(TOPIC, auto_offset_reset="earliest", consumer_timeout_ms=200, **_kafka())
    _ready("warehouse")
    while not stop.is_set():
        for message in consumer:
            order = json.loads(message.value)
            with _tracer.start_as_current_span("pick"):
                _execute("insert into orders values (?, ?)", (order["order_no"], order["price"]))
    consumer.close()


SERVICES: dict[str, Callable[[threading.Event], None]] = {
    "warehouse": warehouse,
    "orders": orders,
    "gateway": gateway,
}


def create_tables(path: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("pragma journal_mode = wal")
        connection.execute("create table orders (order_no text, price integer)")
        connection.execute("create table reminders (order_no text)")
    connection.close()


def _execute(statement: str, values: tuple[object, ...]) -> None:
    connection = sqlite3.connect(os.environ["SHOP_DATABASE"], timeout=10)
    try:
        with connection:
            connection.execute(statement, values)
    finally:
        connection.close()


def _kafka() -> dict[str, Any]:
    """The mock cluster inside librdkafka speaks the protocol of Kafka 2.3, and cannot say so."""
    version = {"api_version": (2, 3)} if os.environ.get("SHOP_KAFKA_IS_MOCK") else {}
    return {"bootstrap_servers": os.environ["SHOP_KAFKA"], **version}


def _serve(routes: list[Route], variable: str, stop: threading.Event) -> None:
    port = int(os.environ[variable].rpartition(":")[2])
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="warning"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    threading.Thread(target=_stop_with, args=(server, stop), daemon=True).start()
    server.run()


def _stop_with(server: uvicorn.Server, stop: threading.Event) -> None:
    import time

    while not server.started and not stop.is_set():
        time.sleep(0.02)
    _ready(server.config.host)
    stop.wait()
    server.should_exit = True


def _ready(what: str) -> None:
    print(f"ready {what}", flush=True)
