"""What mends each cause: one sentence, and the line of configuration that does it."""

from __future__ import annotations

import re

# Where an instrumentation is not named like tracefill's module for the same library.
_MODULES = {
    "kafka_python": "kafka",
    "confluent_kafka": "confluent",
    "aiohttp_server": "aiohttp_web",
    "asgiref": "asgi",
}
_NAMES = """
    aio_pika aiohttp_client aiohttp_web aiokafka aiosqlite apscheduler arq asgi asyncpg celery confluent dbapi django
    dramatiq fastapi flask grpc httpx huey kafka kombu mysqlclient pika psycopg psycopg2 pycurl pymysql redis requests
    rq schedule sqlalchemy sqlite3 starlette threads urllib urllib3 websocket_client websockets wsgi
"""
_KNOWN = frozenset(_NAMES.split())

_CURES = {
    "not_propagated": ("wrap the caller, so that it sends its context along", "near"),
    "not_extracted": ("wrap the callee, so that it continues the context it is sent", "far"),
    "format_mismatch": (
        "let the callee read every known header format; else look for what drops headers between the two",
        "OTEL_PROPAGATORS=tracefill",
    ),
    "id_truncated": ("hand on all 128 bits of the trace id", "OTEL_PROPAGATORS=tracefill"),
    "handoff_lost": (
        "carry the context of the job to the thread or task that runs it",
        "tracefill.install(queues=True)",
    ),
    "scope_too_short": ("keep the consumer's scope open until the handler has run", "far"),
    "sampled_out": ("let every service follow the decision of its caller", "OTEL_TRACES_SAMPLER=parentbased_always_on"),
    "not_exported": (
        "export before the queue overflows, and flush when the process ends",
        "OTEL_BSP_MAX_QUEUE_SIZE=16384",
    ),
    "unfinished": (
        "end spans and flush them before the process ends; keep long loops out of one span",
        "tracer_provider.shutdown()",
    ),
    "duplicate_id": ("make ids that stay random after a fork", "OTEL_PYTHON_ID_GENERATOR=tracefill"),
    "several_roots": ("begin each trace once, at its entry", "OTEL_PROPAGATORS=tracefill"),
    "cycle": ("make ids that stay random after a fork", "OTEL_PYTHON_ID_GENERATOR=tracefill"),
    "glued": ("let each run begin its own trace", "OTEL_PYTHON_CONTEXT=tracefill"),
    "premature_end": ("end the span after what runs inside of it", "OTEL_PYTHON_CONTEXT=tracefill"),
    "clock_skew": ("keep the clocks of the machines in step", "chronyc makestep"),
    "exported_twice": ("send each span through one exporter", "OTEL_TRACES_EXPORTER=otlp"),
}


def cure(cause: str, near_library: str, far_library: str) -> dict[str, str]:
    """The cure of a finding, for the libraries on its two sides.

    >>> cure("not_propagated", "opentelemetry.instrumentation.kafka", "")
    {'text': 'wrap the caller, so that it sends its context along', 'config': "tracefill.install(only=['kafka'])"}
    """
    text, config = _CURES[cause]
    if config in ("near", "far"):
        config = install_line({"near": near_library, "far": far_library}[config])
    return {"text": text, "config": config}


def install_line(library: str) -> str:
    """The line that installs tracefill for this instrumentation alone, or for all where it is not one of ours."""
    words = re.split(r"[.\-/@ ]", library.lower().removeprefix("opentelemetry.instrumentation."))
    for word in reversed(words):
        module = _MODULES.get(word, word)
        if module in _KNOWN:
            return f"tracefill.install(only=['{module}'])"
    return "tracefill.install()"
