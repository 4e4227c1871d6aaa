"""The first step of a request: whether a span of it would be recorded, what its carrier holds, and the scope that is open then."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased

from tracefill import _codec
from tracefill.context import current, extract, scope

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"
SAMPLED, DENIED = ({"traceparent": TRACE + flags} for flags in ("01", "00"))


class Gate(_codec.Gate):
    """Follows a parent that says no as it is told to, and counts how often it is told of a provider."""

    def __init__(self, follows: bool = True) -> None:
        self.follows = follows
        self.met: list[object] = []

    def meet(self, provider: object) -> bool:
        self.met.append(provider)
        return self.follows


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts another global provider in force, as programs do once and tests do often."""
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    return lambda made: monkeypatch.setattr(trace, "_TRACER_PROVIDER", made)


def test_a_span_is_recorded_unless_its_parent_says_no_and_the_sampler_follows() -> None:
    assert Gate().records(extract(SAMPLED))
    assert Gate().records(Context())
    assert not Gate().records(extract(DENIED))
    assert Gate(follows=False).records(extract(DENIED))


def test_the_context_of_now_is_asked_where_none_is_given() -> None:
    gate = Gate()
    assert gate.records()
    with scope(extract(DENIED)):
        assert not gate.records()
    assert gate.records()


@pytest.mark.parametrize(
    "key",
    [otel_context._SUPPRESS_INSTRUMENTATION_KEY, "suppress_instrumentation"],
    ids=["the key of now", "the old name"],
)
@pytest.mark.parametrize("headers", [SAMPLED, DENIED, {}])
def test_nothing_is_recorded_where_instrumentation_is_suppressed(key: str, headers: dict[str, str]) -> None:
    quiet = otel_context.set_value(key, True, extract(headers))
    assert not Gate(follows=False).records(quiet)
    assert Gate(follows=False).records(otel_context.set_value(key, False, extract(headers)))


def test_each_provider_is_met_once(provider: Any) -> None:
    gate, first, second = Gate(), TracerProvider(), TracerProvider()
    for made in (first, second):
        provider(made)
        assert gate.records()
        assert gate.records()
    assert gate.met == [first, second]


def test_without_a_provider_the_proxy_is_met(provider: Any) -> None:
    gate = Gate()
    assert gate.records()
    assert gate.records()
    assert [type(met).__name__ for met in gate.met] == ["ProxyTracerProvider"]


def test_a_gate_without_meet_says_what_to_do() -> None:
    with pytest.raises(NotImplementedError, match=r"override meet\(provider\)"):
        _codec.Gate().records()


def test_what_meet_raises_goes_on_and_is_asked_again(provider: Any) -> None:
    class Broken(Gate):
        def meet(self, provider: object) -> bool:
            super().meet(provider)
            raise RuntimeError("not today")

    gate = Broken()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not today"):
            gate.records()
    assert len(gate.met) == 2


def test_a_request_that_is_to_be_recorded_enters_with_its_context() -> None:
    met = Gate().enter(dict(SAMPLED), "key")
    assert isinstance(met, Context)
    assert trace.get_current_span(met).get_span_context().trace_flags.sampled
    assert not current()


def test_a_request_that_is_not_enters_in_an_open_scope() -> None:
    met = Gate().enter(dict(DENIED), "key")
    assert isinstance(met, _codec.Scope)
    assert f"{trace.get_current_span().get_span_context().trace_id:032x}" == TRACE[3:35]
    met.close()
    assert not current()
    met.close()


@pytest.mark.parametrize(
    "carrier", [{**SAMPLED, "key": 1}, list(SAMPLED.items()), None, type("Scope", (dict,), {})(SAMPLED)]
)
def test_what_is_served_already_or_no_dict_wants_a_closer_look(carrier: Any) -> None:
    assert Gate().enter(carrier, "key") is None


def test_so_does_what_comes_while_something_is_current() -> None:
    with scope(extract(SAMPLED)):
        assert Gate().enter(dict(DENIED), "key") is None


def test_a_scope_that_was_entered_is_open_until_it_is_closed() -> None:
    context = extract(SAMPLED)
    opened = _codec.enter_scope(context)
    assert current() is context
    opened.close()
    assert not current()
    with pytest.raises(TypeError):
        _codec.enter_scope(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([(b"host", b"a")], b"a"),
        (((b"accept", b"*"), (b"host", b"a")), b"a"),
        ([[b"host", b"a"]], b"a"),
        ([(b"host", b"a"), (b"host", b"b"), (b"host", b"c")], b"a,b,c"),
        ([(b"host", bytearray(b"a"))], b"a"),
        ([(b"hosts", b"a"), (b"hos", b"b"), ("host", b"c"), (b"Host", b"d")], None),
        ([(b"host",), (b"host", b"a", b"b"), ()], None),
        ([], None), ((), None), (iter([(b"host", b"a")]), None), (None, None), ({b"host": b"a"}, None),
    ],
)  # fmt: skip
def test_headers_of_a_scope_are_found_by_name(headers: Any, found: bytes | None) -> None:
    assert _codec.find_header(headers, b"host") == found


class Odd(Sampler):
    def should_sample(self, *arguments: Any, **named: Any) -> Any:
        return ALWAYS_ON.should_sample(*arguments, **named)

    def get_description(self) -> str:
        return "Odd"


@pytest.mark.parametrize(
    ("sampler", "follows"),
    [
        (ParentBased(ALWAYS_ON), True),
        (ParentBased(TraceIdRatioBased(0.5)), True),
        (ALWAYS_ON, False),
        (Odd(), False),
        (ParentBased(ALWAYS_ON, remote_parent_not_sampled=ALWAYS_ON), False),
        (ParentBased(ALWAYS_ON, local_parent_not_sampled=Odd()), False),
    ],
)
def test_the_tracer_of_an_integration_follows_the_samplers_that_do(
    provider: Any, sampler: Sampler, follows: bool
) -> None:
    from tracefill.spans import Tracer

    provider(TracerProvider(sampler=sampler))
    assert Tracer("t").records(extract(DENIED)) is not follows
