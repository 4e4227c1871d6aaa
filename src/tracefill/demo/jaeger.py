"""The spans of a run, sent to a Jaeger (or any other collector) by OTLP over HTTP; and how to audit them there."""

from __future__ import annotations

import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

TIMEOUT_S = 15
QUERY_PORT = 16686
_NOTHING = b'{"resourceSpans":[]}'


class NoJaeger(Exception):
    """Nobody takes the spans; the message says why."""


def endpoint(url: str) -> str:
    """Where spans are sent to, tried out. Raises NoJaeger.

    >>> endpoint("localhost:4318")
    Traceback (most recent call last):
    ...
    tracefill.demo.jaeger.NoJaeger: expected Jaeger's OTLP endpoint such as http://localhost:4318, found localhost:4318
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise NoJaeger(f"expected Jaeger's OTLP endpoint such as http://localhost:4318, found {url}")
    where = url if parts.path.strip("/") else f"{url.rstrip('/')}/v1/traces"
    _post(where, _NOTHING)
    return where


def send(where: str, folder: Path) -> None:
    """Sends all spans that the processes of a run have written: a line of their files is a request of OTLP."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as lines:
            for line in lines:
                _post(where, line)


def _post(where: str, body: bytes) -> None:
    request = urllib.request.Request(where, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            answer.read()
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise NoJaeger(f"{where} does not take spans: {error}") from None


def audit_source(where: str, window: dict[str, Any]) -> str:
    """The source for `tracefill audit` that holds one run: the query API at its usual port, and the time of the run.

    >>> window = {"start_unix_nano": "1767225600000000000", "end_unix_nano": "1767225660000000000"}
    >>> audit_source("http://localhost:4318/v1/traces", window)
    'http://localhost:16686/?since=2026-01-01T00%3A00%3A00Z&until=2026-01-01T00%3A01%3A01Z'
    """
    begin = datetime.fromtimestamp(int(window["start_unix_nano"]) // 10**9, timezone.utc)
    end = datetime.fromtimestamp(int(window["end_unix_nano"]) // 10**9, timezone.utc) + timedelta(seconds=1)
    times = {"since": f"{begin:%Y-%m-%dT%H:%M:%SZ}", "until": f"{end:%Y-%m-%dT%H:%M:%SZ}"}
    return f"http://{urlsplit(where).hostname}:{QUERY_PORT}/?{urlencode(times)}"
