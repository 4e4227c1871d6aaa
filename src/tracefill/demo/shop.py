"""The services of the shop: ordinary code, as any team would write it. None of it names tracefill or touches propagation.

    callers --HTTP--> nginx --HTTP--> gateway --HTTP--> orders --thread pool, gRPC--> pricing
    orders --queue worker, Kafka--> warehouse --RabbitMQ--> mailer
    orders --timer, process pool, scheduled job--> reminder, invoice, confirmation

Most of them write a table of SQLite. nginx and RabbitMQ are there when they are installed.
To add a layer, add a service here: a function that serves until `stop` is set, and its row in SERVICES.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import datetime, timezone
from typing import Any

import grpc
import pika
import requests
import uvicorn
from apscheduler.schedulers.background import BackgroundScheduler
from kafka import KafkaConsumer, KafkaProducer
from opentelemetry import trace
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tracefill.demo.telemetry import begin_in_worker

REMINDER_SECONDS = 0.2
STOCKTAKING_SECONDS = 1

_tracer = trace.get_tracer("shop")


def gateway(stop: threading.Event) -> None:
    """Takes orders from outside and hands them on."""
    session = requests.Session()

    def place(request: Request) -> JSONResponse:
        order = {"order_no": request.path_params["order_no"]}
        answer = session.post(f"http://{os.environ['SHOP_ORDERS']}/orders", json=order, timeout=30)
        return JSONResponse(answer.json(), answer.status_code)

    # Guests have an entrance of their own: nobody in the house ever calls it.
    paths = ("/orders/{order_no}", "/guest-orders/{order_no}")
    _serve([Route(path, place, methods=["POST"]) for path in paths], "SHOP_GATEWAY", stop)


def orders(stop: threading.Event) -> None:
    """Prices an order in a pool, has it confirmed, published and invoiced, and sets a timer for the reminder."""
    pool = ThreadPoolExecutor(4)
    invoices = ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=begin_in_worker, initargs=("orders",)
    )
    invoices.submit(len, ()).result()  # the worker is up before the first order is
    scheduler = BackgroundScheduler(job_defaults={"misfire_grace_time": None})
    scheduler.start()
    outbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
    publisher = threading.Thread(target=_publish, args=(outbox,), name="publisher")
    publisher.start()
    channel = grpc.insecure_channel(os.environ["SHOP_PRICING"])
    quote = channel.unary_unary("/shop.Pricing/Quote")

    def check(order: dict[str, Any]) -> dict[str, Any]:
        with _tracer.start_as_current_span("check order"):
            return {**order, "price": int(quote(order["order_no"].encode(), timeout=10))}

    def place(order: dict[str, Any]) -> JSONResponse:
        checked = pool.submit(check, order).result()
        scheduler.add_job(_confirm, args=[order["order_no"]])
        if scheduler.get_job("stocktaking") is None:  # the day's first order
            first = datetime.now(timezone.utc)
            scheduler.add_job(
                _count_stock, "interval", seconds=STOCKTAKING_SECONDS, next_run_time=first, id="stocktaking"
            )
        threading.Timer(REMINDER_SECONDS, _remind, args=(order["order_no"],)).start()
        outbox.put(checked)
        invoices.submit(_invoice, checked).result()
        return JSONResponse(checked, 202)

    async def accept(request: Request) -> JSONResponse:
        return await run_in_threadpool(place, await request.json())

    _serve([Route("/orders", accept, methods=["POST"])], "SHOP_ORDERS", stop)
    scheduler.shutdown()
    outbox.put(None)
    publisher.join()
    pool.shutdown()
    invoices.shutdown()
    channel.close()


def _publish(outbox: queue.Queue[dict[str, Any] | None]) -> None:
    producer = KafkaProducer(**_kafka())
    while (order := outbox.get()) is not None:
        with _tracer.start_as_current_span("publish order"):
            producer.send(os.environ["SHOP_TOPIC"], json.dumps(order).encode(), headers=[("shop", b"demo")])
    producer.flush(10)
    producer.close(5)


def _invoice(order: dict[str, Any]) -> None:
    with _tracer.start_as_current_span("write invoice"):
        _execute("insert into invoices values (?, ?)", (order["order_no"], order["price"]))


def _remind(order_no: str) -> None:
    with _tracer.start_as_current_span("remind"):
        _execute("insert into reminders values (?)", (order_no,))


def _confirm(order_no: str) -> None:
    with _tracer.start_as_current_span("confirm order"):
        _execute("insert into confirmations values (?)", (order_no,))


def _count_stock() -> None:
    with _tracer.start_as_current_span("count stock"):
        _execute("select count(*) from orders")


def pricing(stop: threading.Event) -> None:
    """Says by gRPC what an order costs."""

    def quote(order_no: bytes, _context: grpc.ServicerContext) -> bytes:
        with _tracer.start_as_current_span("look up price"):
            return str(7 * len(order_no)).encode()

    server = grpc.server(ThreadPoolExecutor(4))
    methods = {"Quote": grpc.unary_unary_rpc_method_handler(quote)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Pricing", methods),))
    server.add_insecure_port(os.environ["SHOP_PRICING"])
    server.start()
    _ready("pricing")
    stop.wait()
    server.stop(1).wait()


def warehouse(stop: threading.Event) -> None:
    """Reads the orders, writes them down, and has the customer notified."""
    consumer = KafkaConsumer(
        os.environ["SHOP_TOPIC"], auto_offset_reset="earliest", consumer_timeout_ms=200, **_kafka()
    )
    notify = _notifier()
    _ready("warehouse")
    while not stop.is_set():
        for message in consumer:
            order = json.loads(message.value)
            with _tracer.start_as_current_span("pick"):
                _execute("insert into orders values (?, ?)", (order["order_no"], order["price"]))
                notify(order["order_no"])
    consumer.close()


def _notifier() -> Callable[[str], None]:
    if "SHOP_RABBITMQ" not in os.environ:
        return lambda order_no: None
    channel, queue_name = _rabbitmq()
    return lambda order_no: channel.basic_publish("", queue_name, order_no.encode())


def mailer(stop: threading.Event) -> None:
    """Writes to the customer."""
    channel, queue_name = _rabbitmq()

    def send(_channel: Any, _method: Any, _properties: Any, body: bytes) -> None:
        with _tracer.start_as_current_span("send mail"):
            _execute("insert into notifications values (?)", (body.decode(),))

    channel.basic_consume(queue_name, send, auto_ack=True)
    _ready("mailer")
    while not stop.is_set():
        channel.connection.process_data_events(time_limit=0.2)
    channel.connection.close()


SERVICES: dict[str, Callable[[threading.Event], None]] = {
    "mailer": mailer,
    "warehouse": warehouse,
    "pricing": pricing,
    "orders": orders,
    "gateway": gateway,
}

# Each step of an order, by the name of its span.
STEPS = ("look up price", "confirm order", "remind", "write invoice", "pick", "send mail")

# One row of each an order; `notifications` only where there is RabbitMQ.
TABLES = {
    "orders": "order_no text, price integer",
    "invoices": "order_no text, price integer",
    "reminders": "order_no text",
    "confirmations": "order_no text",
    "notifications": "order_no text",
}


def create_tables(path: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("pragma journal_mode = wal")
        for table, columns in TABLES.items():
            connection.execute(f"create table {table} ({columns})")
    connection.close()


def _execute(statement: str, values: tuple[object, ...] = ()) -> None:
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


def _rabbitmq() -> tuple[Any, str]:
    """A channel, and the queue of the notifications, which goes with its last reader."""
    parameters = pika.URLParameters(os.environ["SHOP_RABBITMQ"])
    parameters.heartbeat = 0  # who waits for orders does not answer in between
    parameters.connection_attempts, parameters.retry_delay = 5, 0.5
    channel = pika.BlockingConnection(parameters).channel()
    channel.queue_declare(os.environ["SHOP_QUEUE"], auto_delete=True)
    return channel, os.environ["SHOP_QUEUE"]


def _serve(routes: list[Route], variable: str, stop: threading.Event) -> None:
    port = int(os.environ[variable].rpartition(":")[2])
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="warning"))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    threading.Thread(target=_stop_with, args=(server, stop), daemon=True).start()
    server.run()


def _stop_with(server: uvicorn.Server, stop: threading.Event) -> None:
    while not server.started and not stop.is_set():
        time.sleep(0.02)
    _ready(server.config.host)
    stop.wait()
    server.should_exit = True


def _ready(what: str) -> None:
    print(f"ready {what}", flush=True)
