"""Every carrier shape: read in any case, written without a second header of one name."""

from __future__ import annotations

import email.message
import os
from typing import Any

import httpx
import multidict
import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry.propagators.textmap import Getter, Setter
from requests.structures import CaseInsensitiveDict
from starlette.datastructures import Headers as StarletteHeaders
from werkzeug.datastructures import Headers as WerkzeugHeaders

import tracefill
from tracefill import carriers
from tracefill.propagators import B3Propagator, TraceContextPropagator, TracefillPropagator

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SPAN_ID = 0x00F067AA0BA902B7


def message() -> email.message.Message:
    made = email.message.Message()
    made["TraceParent"] = TRACEPARENT
    made["Baggage"] = "a=1"
    made["baggage"] = "b=2"
    return made


class Request:
    def __init__(self, headers: Any) -> None:
        self.headers = headers


LINES = [("TraceParent", TRACEPARENT), ("Baggage", "a=1"), ("baggage", "b=2")]
BYTE_LINES = [(name.encode(), value.encode()) for name, value in LINES]
CARRIERS = {
    "pairs of text": LINES,
    "pairs of bytes": BYTE_LINES,
    "tuple of lists": tuple(list(line) for line in BYTE_LINES),
    "ASGI scope": {"type": "http", "headers": BYTE_LINES},
    "WSGI environ": {"REQUEST_METHOD": "GET", "HTTP_TRACEPARENT": TRACEPARENT, "HTTP_BAGGAGE": "a=1,b=2"},
    "multidict": multidict.CIMultiDict(LINES),
    "werkzeug": WerkzeugHeaders(LINES),
    "httpx": httpx.Headers(LINES),
    "starlette": StarletteHeaders(raw=[(name.lower(), value) for name, value in BYTE_LINES]),
    "requests": CaseInsensitiveDict({"TRACEPARENT": TRACEPARENT, "baggage": "a=1,b=2"}),
    "email": message(),
    "request": Request(httpx.Headers(LINES)),
    "dict": {"traceparent": TRACEPARENT, "baggage": "a=1,b=2"},
    "dict in another case": {"TRACEPARENT": TRACEPARENT, "Baggage": "a=1,b=2"},
    "dict of lists": {"traceparent": [TRACEPARENT], "baggage": ["a=1", "b=2"]},
}


def span_id(context: Any) -> int:
    return trace.get_current_span(context).get_span_context().span_id


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS)
def test_every_shape_is_recognised_by_itself(carrier: Any) -> None:
    found = tracefill.extract(carrier)
    assert span_id(found) == SPAN_ID
    assert dict(baggage.get_all(found)) == {"a": "1", "b": "2"}


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS)
def test_the_getter_reads_every_shape(carrier: Any) -> None:
    if carrier is not CARRIERS["dict of lists"]:
        assert span_id(TraceContextPropagator().extract(carrier, getter=carriers.getter)) == SPAN_ID


def test_environment_variables_are_a_carrier(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", TRACEPARENT)
    assert span_id(tracefill.extract(os.environ)) == SPAN_ID
    assert span_id(tracefill.context.from_environment()) == SPAN_ID


def test_what_is_no_carrier_is_named() -> None:
    with pytest.raises(TypeError, match="expected a mapping, a list of pairs"):
        tracefill.extract(7)
    assert not tracefill.extract(None)


@pytest.mark.parametrize("lines", [[("traceparent", OTHER), ("traceparent", TRACEPARENT)]])
def test_two_traceparents_are_rejected_in_http_and_the_last_wins_in_a_message(lines: list[tuple[str, str]]) -> None:
    assert not tracefill.extract(lines)
    assert not tracefill.extract([(name.encode(), value.encode()) for name, value in lines])
    assert span_id(tracefill.extract([(name, value.encode()) for name, value in lines])) == SPAN_ID


def test_several_tracestate_lines_are_joined_in_order() -> None:
    found = tracefill.extract([("traceparent", TRACEPARENT), ("tracestate", "a=1"), ("TraceState", "b=2")])
    assert trace.get_current_span(found).get_span_context().trace_state.to_header() == "a=1,b=2"


TARGETS = {
    "dict": dict,
    "pairs of text": lambda old: list(old.items()),
    "pairs of bytes": lambda old: [(k.encode(), v.encode()) for k, v in old.items()],
    "message headers": lambda old: [(k, v.encode()) for k, v in old.items()],
    "multidict": multidict.CIMultiDict,
    "httpx": httpx.Headers,
    "werkzeug": WerkzeugHeaders,
    "requests": CaseInsensitiveDict,
}


@pytest.mark.parametrize("make", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("old", ["traceparent", "Traceparent"])
def test_injecting_replaces_and_never_appends(make: Any, old: str) -> None:
    carrier = make({old: OTHER, "x": "y"})
    tracefill.inject(carrier, tracefill.extract({"traceparent": TRACEPARENT}))
    values = [
        carriers._text(value)
        for name, value in carriers.pairs(carrier)
        if carriers._text(name).lower() == "traceparent"
    ]
    assert values == [TRACEPARENT]
    assert len(carriers.pairs(carrier)) == 2


def test_email_messages_are_written_once() -> None:
    carrier = message()
    tracefill.inject(carrier, tracefill.extract({"traceparent": OTHER}))
    assert carrier.get_all("traceparent") == [OTHER]


def test_injecting_outside_of_any_trace_writes_nothing() -> None:
    carrier: dict[str, str] = {}
    tracefill.inject(carrier)
    B3Propagator().inject(carrier)
    TracefillPropagator().inject(carrier)
    assert carrier == {}


class OwnGetter(Getter[Any]):
    def get(self, carrier: Any, key: str) -> list[str] | None:
        return carrier.lookup(key)

    def keys(self, carrier: Any) -> list[str]:
        return []


class OwnSetter(Setter[Any]):
    def set(self, carrier: Any, key: str, value: str) -> None:
        carrier.append(f"{key}: {value}")


def test_a_users_own_getter_and_setter_are_asked() -> None:
    class Carrier:
        def lookup(self, key: str) -> list[str] | None:
            return {"traceparent": [TRACEPARENT], "baggage": ["a=1"]}.get(key)

    found = TracefillPropagator().extract(Carrier(), getter=OwnGetter())
    out: list[str] = []
    TracefillPropagator().inject(out, found, OwnSetter())
    assert out == [f"traceparent: {TRACEPARENT}", "baggage: a=1"]


def test_the_propagator_that_the_user_configured_is_followed() -> None:
    before = propagate.get_global_textmap()
    try:
        propagate.set_global_textmap(B3Propagator())
        carrier: dict[str, str] = {}
        tracefill.inject(carrier, tracefill.extract({"b3": "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"}))
        assert carrier == {"b3": "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1"}
        assert not tracefill.extract({"traceparent": TRACEPARENT})
    finally:
        propagate.set_global_textmap(before)
    assert span_id(tracefill.extract({"traceparent": TRACEPARENT})) == SPAN_ID
