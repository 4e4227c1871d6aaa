"""The 41 cases of the W3C Trace Context validation suite (level 2, strict), told again against our propagators.

The suite talks HTTP to a service and looks at the calls that the service makes. Here the service is an object: headers
in, a span (by the SDK, or by a few lines of our own), headers out. It is run with each way in which servers hand header
lines over. Cases are named as in https://github.com/w3c/trace-context/tree/main/test.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, TextMapPropagator
from opentelemetry.sdk.trace import TracerProvider

from tests.codec.reference import read_tracestate, tracestate_mapping
from tracefill.propagators import TraceContextPropagator, TracefillPropagator

Header: TypeAlias = tuple[str, str]
Headers: TypeAlias = Sequence[Header]

TRACE_ID, PARENT_ID = "12345678901234567890123456789012", "1234567890123456"
IDS = f"{TRACE_ID}-{PARENT_ID}"
VALID: Header = ("traceparent", f"00-{IDS}-01")
UNSAMPLED: Header = ("traceparent", f"00-{IDS}-00")


class Lines(Getter[Headers]):
    """Every header line by itself, as ASGI and aiohttp have them."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        return [value for name, value in carrier if name.lower() == key.lower()] or None

    def keys(self, carrier: Headers) -> list[str]:
        return [name for name, _ in carrier]


class Joined(Lines):
    """Lines of one name joined by a comma, as WSGI servers do."""

    def get(self, carrier: Headers, key: str) -> list[str] | None:
        lines = super().get(carrier, key)
        return None if lines is None else [",".join(lines)]


@contextmanager
def sdk_span(context: Context) -> Iterator[Context]:
    with TracerProvider(shutdown_on_exit=False).get_tracer("test").start_as_current_span("request", context) as span:
        yield trace.set_span_in_context(span, context)


@contextmanager
def hand_made_span(context: Context) -> Iterator[Context]:
    """What the specification asks of a participant, without an SDK to correct what the propagator passes on."""
    parent = trace.get_current_span(context).get_span_context()
    span_context = trace.SpanContext(
        parent.trace_id or random.getrandbits(128),
        random.getrandbits(64),
        is_remote=False,
        trace_flags=parent.trace_flags,
        trace_state=parent.trace_state,
    )
    yield trace.set_span_in_context(trace.NonRecordingSpan(span_context), context)


@dataclass(frozen=True)
class Sent:
    """The outgoing headers, looked at as the suite does: the traceparent is valid, whatever came in."""

    traceparent: str
    tracestate: str

    def __post_init__(self) -> None:
        version, trace_id, parent_id, flags = self.traceparent.split("-")
        assert (version, len(trace_id), len(parent_id), len(flags)) == ("00", 32, 16, 2)
        assert set(trace_id + parent_id + flags) <= set("0123456789abcdef")
        assert int(trace_id, 16)
        assert int(parent_id, 16)
        assert parent_id != PARENT_ID, "a participant sends its own span id"
        assert read_tracestate(self.tracestate) == self.tracestate, "white space and empty members are not sent on"

    @property
    def trace_id(self) -> str:
        return self.traceparent.split("-")[1]

    @property
    def parent_id(self) -> str:
        return self.traceparent.split("-")[2]

    @property
    def flags(self) -> int:
        return int(self.traceparent.split("-")[3], 16)

    @property
    def members(self) -> dict[str, str]:
        return tracestate_mapping(self.tracestate)

    @property
    def is_continued(self) -> bool:
        return self.trace_id == TRACE_ID


Participant: TypeAlias = Callable[[Context], AbstractContextManager[Context]]


@dataclass(frozen=True)
class Service:
    """Called with header lines, it answers with the headers of a call of its own while it handles that request."""

    propagator: TextMapPropagator
    getter: Getter[Headers]
    span: Participant

    def __call__(self, *headers: Header) -> Sent:
        return self.calls(1, *headers)[0]

    def calls(self, count: int, *headers: Header) -> list[Sent]:
        context = self.propagator.extract(headers, Context(), self.getter)
        return [self.send(context) for _ in range(count)]

    def send(self, context: Context) -> Sent:
        sent: dict[str, str] = {}
        with self.span(context) as inner:
            self.propagator.inject(sent, inner)
        assert sent.keys() <= {"traceparent", "tracestate"}
        assert sent.get("tracestate") != "", "an empty tracestate is not sent"
        return Sent(sent["traceparent"], sent.get("tracestate", ""))


PROPAGATORS = [TraceContextPropagator, TracefillPropagator]
GETTERS = {"lines": Lines(), "joined": Joined()}
SPANS = {"sdk": sdk_span, "no sdk": hand_made_span}
SERVICES = [
    pytest.param((propagator, getter, span), id=f"{propagator.__name__}, {lines}, {sdk}")
    for propagator in PROPAGATORS
    for lines, getter in GETTERS.items()
    for sdk, span in SPANS.items()
]


@pytest.fixture(params=SERVICES)
def call(request: pytest.FixtureRequest) -> Service:
    propagator, getter, span = request.param
    return Service(propagator(), getter, span)


def traceparent(value: str) -> Header:
    return "traceparent", value


def tracestate(value: str) -> Header:
    return "tracestate", value


# ---- traceparent


def test_both_traceparent_and_tracestate_missing(call: Service) -> None:
    assert call().tracestate == ""


def test_traceparent_included_tracestate_missing(call: Service) -> None:
    sent = call(VALID)
    assert sent.is_continued
    assert sent.tracestate == ""


def test_traceparent_duplicated(call: Service) -> None:
    other = TRACE_ID[:-1] + "1"
    sent = call(traceparent(f"00-{other}-{PARENT_ID}-01"), VALID)
    assert sent.trace_id not in (other, TRACE_ID)


def test_traceparent_header_name(call: Service) -> None:
    assert not call(("trace-parent", VALID[1])).is_continued
    assert not call(("trace.parent", VALID[1])).is_continued


def test_traceparent_header_name_valid_casing(call: Service) -> None:
    assert call(("TraceParent", VALID[1])).is_continued
    assert call(("TrAcEpArEnT", VALID[1])).is_continued
    assert call(("TRACEPARENT", VALID[1])).is_continued


def test_traceparent_version_0x00(call: Service) -> None:
    assert not call(traceparent(f"00-{IDS}-01.")).is_continued
    assert not call(traceparent(f"00-{IDS}-01-what-the-future-will-be-like")).is_continued


def test_traceparent_version_0xcc(call: Service) -> None:
    assert call(traceparent(f"cc-{IDS}-01")).is_continued
    assert call(traceparent(f"cc-{IDS}-01-what-the-future-will-be-like")).is_continued
    assert not call(traceparent(f"cc-{IDS}-01.what-the-future-will-be-like")).is_continued


def test_traceparent_version_0xff(call: Service) -> None:
    assert not call(traceparent(f"ff-{IDS}-01")).is_continued


def test_traceparent_version_illegal_characters(call: Service) -> None:
    assert not call(traceparent(f".0-{IDS}-01")).is_continued
    assert not call(traceparent(f"0.-{IDS}-01")).is_continued


def test_traceparent_version_too_long(call: Service) -> None:
    assert not call(traceparent(f"000-{IDS}-01")).is_continued
    assert not call(traceparent(f"0000-{IDS}-01")).is_continued


def test_traceparent_version_too_short(call: Service) -> None:
    assert not call(traceparent(f"0-{IDS}-01")).is_continued


def test_traceparent_trace_id_all_zero(call: Service) -> None:
    call(traceparent(f"00-{'0' * 32}-{PARENT_ID}-01"))  # `Sent` refuses zeros


def test_traceparent_trace_id_illegal_characters(call: Service) -> None:
    call(traceparent(f"00-.{TRACE_ID[1:]}-{PARENT_ID}-01"))  # `Sent` refuses a dot
    call(traceparent(f"00-{TRACE_ID[:-1]}.-{PARENT_ID}-01"))


def test_traceparent_trace_id_too_long(call: Service) -> None:
    sent = call(traceparent(f"00-{TRACE_ID}3-{PARENT_ID}-01"))
    assert sent.trace_id not in (TRACE_ID, TRACE_ID[1:] + "3")


def test_traceparent_trace_id_too_short(call: Service) -> None:
    assert TRACE_ID[:-1] not in call(traceparent(f"00-{TRACE_ID[:-1]}-{PARENT_ID}-01")).trace_id


def test_traceparent_parent_id_all_zero(call: Service) -> None:
    assert not call(traceparent(f"00-{TRACE_ID}-{'0' * 16}-01")).is_continued


def test_traceparent_parent_id_illegal_characters(call: Service) -> None:
    assert not call(traceparent(f"00-{TRACE_ID}-.{PARENT_ID[1:]}-01")).is_continued
    assert not call(traceparent(f"00-{TRACE_ID}-{PARENT_ID[:-1]}.-01")).is_continued


def test_traceparent_parent_id_too_long(call: Service) -> None:
    assert not call(traceparent(f"00-{IDS}7-01")).is_continued


def test_traceparent_parent_id_too_short(call: Service) -> None:
    assert not call(traceparent(f"00-{IDS[:-1]}-01")).is_continued


def test_traceparent_trace_flags_illegal_characters(call: Service) -> None:
    assert not call(traceparent(f"00-{IDS}-.0")).is_continued
    assert not call(traceparent(f"00-{IDS}-0.")).is_continued


def test_traceparent_trace_flags_too_long(call: Service) -> None:
    assert not call(traceparent(f"00-{IDS}-001")).is_continued


def test_traceparent_trace_flags_too_short(call: Service) -> None:
    assert not call(traceparent(f"00-{IDS}-1")).is_continued


def test_traceparent_ows_handling(call: Service) -> None:
    for before, after in ((" ", ""), ("\t", ""), ("", " "), ("", "\t"), ("\t ", " \t")):
        assert call(traceparent(before + VALID[1] + after)).is_continued


# ---- tracestate


def test_tracestate_included_traceparent_missing(call: Service) -> None:
    assert call(tracestate("foo=1")).tracestate == ""
    assert call(tracestate("foo=1,bar=2")).tracestate == ""


def test_tracestate_included_traceparent_included(call: Service) -> None:
    sent = call(UNSAMPLED, tracestate("foo=1,bar=2"))
    assert sent.is_continued
    assert sent.members == {"foo": "1", "bar": "2"}


def test_tracestate_header_name(call: Service) -> None:
    assert call(UNSAMPLED, ("trace-state", "foo=1")).tracestate == ""
    assert call(UNSAMPLED, ("trace.state", "foo=1")).tracestate == ""


def test_tracestate_header_name_valid_casing(call: Service) -> None:
    for name in ("TraceState", "TrAcEsTaTe", "TRACESTATE"):
        assert call(UNSAMPLED, (name, "foo=1")).members == {"foo": "1"}


def test_tracestate_empty_header(call: Service) -> None:
    sent = call(UNSAMPLED, tracestate(""))
    assert sent.is_continued
    assert sent.tracestate == ""
    for lines in (("foo=1", ""), ("", "foo=1")):
        sent = call(UNSAMPLED, *map(tracestate, lines))
        assert sent.is_continued
        assert sent.members == {"foo": "1"}


def test_tracestate_multiple_headers_different_keys(call: Service) -> None:
    sent = call(UNSAMPLED, tracestate("foo=1,bar=2"), tracestate("rojo=1,congo=2"), tracestate("baz=3"))
    assert sent.is_continued
    assert sent.tracestate == "foo=1,bar=2,rojo=1,congo=2,baz=3"


def test_tracestate_duplicated_keys(call: Service) -> None:
    """Kept as they are or reduced to one, but the list is not dropped."""
    for lines in (("foo=1,foo=1",), ("foo=1,foo=2",), ("foo=1", "foo=1"), ("foo=1", "foo=2")):
        sent = call(UNSAMPLED, *map(tracestate, lines))
        assert sent.is_continued
        assert sent.members == {"foo": "1"}
        assert set(sent.tracestate.split(",")) <= {"foo=1", "foo=2"}


def test_tracestate_all_allowed_characters(call: Service) -> None:
    key = "abcdefghijklmnopqrstuvwxyz0123456789_-*/"
    value = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) not in ",=")
    assert call(UNSAMPLED, tracestate(f"{key}={value}")).members == {key: value}
    assert call(UNSAMPLED, tracestate(f"{key}@a-z0-9_-*/={value}")).members == {f"{key}@a-z0-9_-*/": value}


def test_tracestate_ows_handling(call: Service) -> None:
    for value in ("foo=1 \t , \t bar=2, \t baz=3", "foo=1\t \t,\t \tbar=2,\t \tbaz=3"):
        assert call(UNSAMPLED, tracestate(value)).members == {"foo": "1", "bar": "2", "baz": "3"}
    for value in (" foo=1", "\tfoo=1", "foo=1 ", "foo=1\t", "\t foo=1 \t"):
        sent = call(UNSAMPLED, tracestate(value))
        assert sent.is_continued
        assert sent.members == {"foo": "1"}


def test_tracestate_key_illegal_characters(call: Service) -> None:
    for key in ("foo ", "FOO", "foo.bar"):
        assert call(UNSAMPLED, tracestate(f"{key}=1")).tracestate == ""


def test_tracestate_key_illegal_vendor_format(call: Service) -> None:
    """Level 2: an at sign is a letter like any other, but for the first."""
    assert call(UNSAMPLED, tracestate("@foo=1,bar=2")).tracestate == ""
    for key in ("foo@", "foo@@bar", "foo@bar@baz"):
        assert call(UNSAMPLED, tracestate(f"{key}=1,bar=2")).members == {key: "1", "bar": "2"}


def test_tracestate_member_count_limit(call: Service) -> None:
    members = [f"bar{number:02}={number:02}" for number in range(1, 34)]
    lines = [",".join(members[start : start + 10]) for start in (0, 10, 20)]
    sent = call(UNSAMPLED, *map(tracestate, [*lines, ",".join(members[30:32])]))
    assert len(sent.members) == 32
    assert sent.members["bar01"] == "01"
    sent = call(UNSAMPLED, *map(tracestate, [*lines, ",".join(members[30:33])]))
    assert sent.is_continued
    assert sent.tracestate == ""


def test_tracestate_key_length_limit(call: Service) -> None:
    for key in ("z" * 256, "t" * 241 + "@" + "v" * 14, "t" * 242 + "@v", "t@" + "v" * 15):
        assert call(UNSAMPLED, tracestate("foo=1"), tracestate(f"{key}=1")).members == {"foo": "1", key: "1"}
    assert call(UNSAMPLED, tracestate("foo=1"), tracestate("z" * 257 + "=1")).tracestate == ""


def test_tracestate_value_illegal_characters(call: Service) -> None:
    assert call(UNSAMPLED, tracestate("foo=bar=baz")).tracestate == ""
    assert call(UNSAMPLED, tracestate("foo=,bar=3")).tracestate == ""


# ---- several calls of the service in one request


def test_multiple_requests_with_valid_traceparent(call: Service) -> None:
    sent = call.calls(3, VALID)
    assert all(one.is_continued for one in sent)
    assert len({one.parent_id for one in sent}) == 3


def test_multiple_requests_without_traceparent(call: Service) -> None:
    assert len({one.parent_id for one in call.calls(3)}) == 3


def test_multiple_requests_with_illegal_traceparent(call: Service) -> None:
    sent = call.calls(3, traceparent(f"00-{'0' * 32}-{PARENT_ID}-01"))
    assert len({one.parent_id for one in sent}) == 3


# ---- level 2


def test_propagates_random_flag(call: Service) -> None:
    sent = call(traceparent(f"00-{IDS}-02"))
    assert sent.is_continued
    assert sent.flags & 2


# ---- beside the suite: what level 2 asks for and nobody tests there


def test_random_flag_that_did_not_come_is_not_sent(call: Service) -> None:
    assert not call(VALID).flags & 2


def test_unknown_flags_are_not_sent_on(call: Service) -> None:
    for flags in ("04", "80", "fc", "ff"):
        assert call(traceparent(f"00-{IDS}-{flags}")).flags & 0xFC == 0
