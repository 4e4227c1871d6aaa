"""The TracerProvider, and what it gives spans: resource, sampling decision, ids."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from tracefill.audit.doctor.finding import Finding

PROBES = 200
_FOLLOWS = "OTEL_TRACES_SAMPLER=parentbased_always_on"


def current() -> Any:
    """The global TracerProvider; None while nobody has set one."""
    from opentelemetry import trace

    provider = trace.get_tracer_provider()
    return None if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)) else provider


def as_configured() -> Any:
    """The provider that a program gets which sets none of its values itself; None without the SDK."""
    try:
        from opentelemetry.sdk.trace import TracerProvider
    except ImportError:
        return None
    return TracerProvider(shutdown_on_exit=False)


def processors(provider: Any) -> list[Any] | None:
    """The span processors; None where the provider does not tell."""
    held = getattr(getattr(provider, "_active_span_processor", None), "_span_processors", None)
    return None if held is None else list(held)


def described(provider: Any) -> dict[str, Any]:
    """The provider in words."""
    sampler, ids = getattr(provider, "sampler", None), getattr(provider, "id_generator", None)
    attributes = _attributes(provider)
    return {
        "class": _name(provider),
        "processors": [_name(processor) for processor in processors(provider) or ()],
        "sampler": sampler.get_description() if sampler is not None else None,
        "id_generator": _name(ids) if ids is not None else None,
        "resource": {name: value for name, value in attributes.items() if name.startswith("service.")},
    }


def _name(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _attributes(provider: Any) -> dict[str, Any]:
    return dict(getattr(getattr(provider, "resource", None), "attributes", None) or {})


def missing() -> Finding:
    """For an application that has set no provider."""
    return Finding(
        "provider_missing",
        "the application has set no TracerProvider when it is imported: its spans are no-ops, unless it sets one later",
        "set one, or start it by opentelemetry-instrument with opentelemetry-distro installed, which sets one",
        "trace.set_tracer_provider(TracerProvider())",
    )


def exporter_missing(what: str) -> Finding:
    """For a provider whose spans nobody takes."""
    return Finding(
        "exporter_missing",
        f"{what}: spans are made and go nowhere",
        "add an exporter",
        "provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))",
    )


def findings(provider: Any) -> Iterator[Finding]:
    """What is wrong with the values of a provider."""
    yield from _resource(_attributes(provider))
    if (sampler := getattr(provider, "sampler", None)) is not None:
        yield from _asked(sampler)
    if (ids := getattr(provider, "id_generator", None)) is not None:
        yield from _ids(ids)


def _resource(attributes: dict[str, Any]) -> Iterator[Finding]:
    name = str(attributes.get("service.name") or "")
    if not name or name.startswith("unknown_service"):
        yield Finding(
            "service_name_missing",
            f"spans are those of {name or 'no service'}: nobody can tell which service they are of",
            "name the service",
            "OTEL_SERVICE_NAME=orders",
        )
    if "service.instance.id" not in attributes:
        yield Finding(
            "instance_missing",
            "the resource has no service.instance.id: the processes of the service cannot be told apart",
            "name the process",
            "OTEL_RESOURCE_ATTRIBUTES=service.instance.id=$(hostname)-$$",
            note=True,
        )


def _asked(sampler: Any) -> Iterator[Finding]:
    try:
        alone = _share_kept(sampler, None)
        recorded, dropped = _share_kept(sampler, True), _share_kept(sampler, False)
    except Exception as error:
        yield Finding("sampler_fails", f"the sampler raises {error!r}", "mend it, or take another", _FOLLOWS)
        return
    words, shares = sampler.get_description(), {"alone": alone, "caller_recorded": recorded, "caller_dropped": dropped}
    if alone == recorded == 0:
        yield Finding("sampler_off", f"{words} records nothing", "take another", _FOLLOWS, shares)
    elif recorded < 1:
        yield Finding(
            "sampler_tears",
            f"{words} decides for itself: it keeps {recorded:.0%} of the spans whose caller is recorded, "
            "and where it drops one the chain is torn",
            "let it follow the caller",
            f"OTEL_TRACES_SAMPLER=parentbased_traceidratio OTEL_TRACES_SAMPLER_ARG={getattr(sampler, 'rate', alone):g}",
            shares,
        )
    elif alone == 0:
        yield Finding(
            "sampler_off", f"{words} records nothing that begins here", "sample some", _FOLLOWS, shares, note=True
        )
    if dropped > 0 and recorded == 1:
        yield Finding(
            "sampler_overrules",
            f"{words} records spans whose caller is not recorded: pieces without a beginning, where a caller samples",
            "let it follow the caller",
            _FOLLOWS,
            shares,
            note=True,
        )


def _share_kept(sampler: Any, caller_recorded: bool | None) -> float:
    """The share of new spans that the sampler keeps: those without a caller, or with a remote one."""
    kept = sum(_keeps(sampler, random.getrandbits(128) | 1, caller_recorded) for _ in range(PROBES))
    return kept / PROBES


def _keeps(sampler: Any, trace_id: int, caller_recorded: bool | None) -> bool:
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

    context = Context()
    if caller_recorded is not None:
        caller = SpanContext(trace_id, 1, True, TraceFlags(int(caller_recorded)))
        context = set_span_in_context(NonRecordingSpan(caller), context)
    decision = sampler.should_sample(context, trace_id, "tracefill doctor", SpanKind.SERVER, {}, [])
    return bool(decision.decision.is_sampled())


def _ids(generator: Any) -> Iterator[Finding]:
    traces = {generator.generate_trace_id() for _ in range(PROBES)}
    spans = {generator.generate_span_id() for _ in range(PROBES)}
    valid = all(0 < one < 1 << 128 for one in traces) and all(0 < one < 1 << 64 for one in spans)
    if not valid or len(traces) < PROBES or len(spans) < PROBES:
        yield Finding(
            "ids_repeat",
            f"of {PROBES} ids {_name(generator)} gave {len(traces)} different trace ids and {len(spans)} span ids"
            + ("" if valid else ", some of them not valid"),
            "take a generator of random ids",
            "OTEL_PYTHON_ID_GENERATOR=tracefill",
        )
