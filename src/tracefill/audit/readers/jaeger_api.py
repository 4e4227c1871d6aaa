"""A running Jaeger, asked through either of its query APIs; or any file that a web server hands out.

``http://jaeger:16686`` asks for all services, ``http://jaeger:16686/api/v3`` does so by the newer API; both take
``?service=``, ``&lookback=2h`` (default 1h) or ``&since=...&until=...``. The URL of a query or of a trace
(``/api/traces?...``, ``/api/v3/traces/ID``) is fetched as it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import msgspec
import numpy as np
import numpy.typing as npt

from tracefill.audit.readers.batch import SpanBatch, Tick
from tracefill.audit.readers.fetching import NotFound, fetch, shown
from tracefill.audit.readers.records import SourceError
from tracefill.audit.readers.sources import begins, counted, read_stream
from tracefill.audit.readers.unpacking import unpacked
from tracefill.audit.spans import Spans, concat

TRACES_A_QUERY = 1000
SHORTEST_STRETCH_US = 1000
EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
ALL_SERVICES = re.compile(r"/api(/v3)?(/traces)?/?$|^/*$")
NAMED = {"service", "query.service_name", "traceID"}  # a query that says itself what it wants
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
EXPECTED = "Jaeger's JSON"


class Api(NamedTuple):
    """How one of the two query APIs is asked."""

    services: str
    traces: str
    service_key: str
    begin_key: str
    end_key: str
    limit_key: str
    raw_key: str  # without it Jaeger hides spans that were exported twice
    names: str

    def query(self, service: str, begin_us: int, end_us: int) -> str:
        """The query for the traces of a service in a stretch of time."""
        begin, end = (_rfc3339(us) if "v3" in self.traces else str(us) for us in (begin_us, end_us))
        return urlencode(
            {
                self.service_key: service,
                self.begin_key: begin,
                self.end_key: end,
                self.limit_key: TRACES_A_QUERY,
                self.raw_key: "true",
            }
        )


V2 = Api("/api/services", "/api/traces", "service", "start", "end", "limit", "raw", "data")
V3 = Api(
    "/api/v3/services",
    "/api/v3/traces",
    "query.service_name",
    "query.start_time_min",
    "query.start_time_max",
    "query.num_traces",
    "query.raw_traces",
    "services",
)


def read_url(url: str, tick: Tick) -> Spans:
    """The spans behind the URL. Raises `SourceError` when they are of no format that we know."""
    parts = urlsplit(url)
    told = dict(parse_qsl(parts.query))
    if not ALL_SERVICES.search(parts.path) or ("/traces" in parts.path and told.keys() & NAMED):
        return _read_answer(url, tick)
    api = V3 if "v3" in parts.path else V2
    base = urlunsplit((parts.scheme, parts.netloc, ALL_SERVICES.sub("", parts.path), "", ""))
    services = [told["service"]] if "service" in told else _services(base, api)
    return _Jaeger(base, api, tick).read(services, *_stretch_of_time(told, shown(url)))


def _read_answer(url: str, tick: Tick) -> Spans:
    """What the URL answers, in any format that can be told by its beginning."""
    batch = SpanBatch()
    read_stream(unpacked(counted(fetch(url, EXPECTED), batch.teller(tick))), shown(url), batch)
    return batch.build()


def _services(base: str, api: Api) -> list[str]:
    body = b"".join(fetch(base + api.services, f"{EXPECTED} with the names of services"))
    try:
        return list(msgspec.json.decode(body)[api.names] or ())
    except (msgspec.MsgspecError, LookupError, TypeError, UnicodeDecodeError):
        raise SourceError(
            f"{shown(base)}{api.services}: expected {EXPECTED} with the names of services, came {begins(body)}"
        ) from None


class _Jaeger:
    """Asks for stretches of time short enough to be answered whole; a trace is taken once, whoever it is found by."""

    def __init__(self, base: str, api: Api, tick: Tick):
        self._base, self._api, self._tick = base, api, tick
        self._seen: set[tuple[int, int]] = set()

    def read(self, services: list[str], begin_us: int, end_us: int) -> Spans:
        return concat(spans for service in services for spans in self._stretch(service, begin_us, end_us))

    def _stretch(self, service: str, begin_us: int, end_us: int) -> Iterator[Spans]:
        spans = self._ask(service, begin_us, end_us)
        trace_ids = list(zip(spans["trace_id_high"].tolist(), spans["trace_id_low"].tolist(), strict=True))
        traces = set(trace_ids)
        if len(traces) >= TRACES_A_QUERY and end_us - begin_us > SHORTEST_STRETCH_US:
            middle = (begin_us + end_us) // 2
            yield from self._stretch(service, begin_us, middle)
            yield from self._stretch(service, middle, end_us)
        else:
            yield _only(spans, np.array([trace_id not in self._seen for trace_id in trace_ids], bool))
            self._seen |= traces

    def _ask(self, service: str, begin_us: int, end_us: int) -> Spans:
        try:
            return _read_answer(
                f"{self._base}{self._api.traces}?{self._api.query(service, begin_us, end_us)}", self._tick
            )
        except NotFound:  # the newer API's word for an empty answer
            return SpanBatch().build()


def _only(spans: Spans, wanted: npt.NDArray[np.bool_]) -> Spans:
    """These rows of the table."""
    new_row = np.cumsum(wanted, dtype=np.int32) - np.int32(1)
    links = wanted[spans["link_row"]]
    columns = {name: column[links if name.startswith("link_") else wanted] for name, column in spans.columns.items()}
    columns["link_row"] = new_row[columns["link_row"]]
    return Spans(columns, spans.strings, spans.input)


def _stretch_of_time(told: dict[str, str], url: str) -> tuple[int, int]:
    """Begin and end in microseconds. Raises `SourceError` for a time that nobody can read."""
    try:
        end = _microseconds(told["until"]) if "until" in told else int(time.time() * 1e6)
        begin = _microseconds(told["since"]) if "since" in told else end - _lookback(told.get("lookback", "1h"))
    except (ValueError, KeyError) as error:
        raise SourceError(f"{url}: expected lookback=2h or since=2026-01-01T00:00:00Z, came {error}") from None
    return begin, end


def _microseconds(text: str) -> int:
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return int((moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp() * 1e6)


def _lookback(text: str) -> int:
    return int(float(text[:-1]) * UNITS[text[-1:]] * 1e6)


def _rfc3339(us: int) -> str:
    return (EPOCH + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")
