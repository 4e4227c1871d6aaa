"""One finding of ``tracefill doctor``: what is wrong, what shows it, and the cure. The causes are a closed list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CAUSES = {
    # settings
    "sdk_missing": "without the SDK every span is a no-op",
    "sdk_disabled": "OTEL_SDK_DISABLED turns every span into a no-op",
    "propagator_unknown": "OTEL_PROPAGATORS names a propagator that is not installed",
    "context_unknown": "OTEL_PYTHON_CONTEXT names a context that is not installed",
    "id_generator_unknown": "OTEL_PYTHON_ID_GENERATOR names a generator that is not installed",
    "sampler_unknown": "OTEL_TRACES_SAMPLER names a sampler that is not installed",
    "sampler_argument": "the sampler cannot use OTEL_TRACES_SAMPLER_ARG",
    "exporter_unknown": "OTEL_TRACES_EXPORTER names an exporter that is not installed",
    "versions_differ": "parts of OpenTelemetry of different releases",
    # the propagator, and what it has met
    "propagator_missing": "no header is read or written",
    "propagator_one_way": "what it writes it does not read, or the reverse",
    "propagator_fails": "the propagator raises",
    "tracecontext_not_read": "the standard header is not read",
    "format_not_read": "headers arrive in a format that nobody reads",
    "headers_malformed": "headers arrive that cannot be read",
    # provider, resource, sampler, ids
    "provider_missing": "no TracerProvider is set",
    "provider_set_twice": "the second TracerProvider is ignored",
    "exporter_missing": "spans are made and go nowhere",
    "service_name_missing": "spans do not say which service they are of",
    "instance_missing": "spans do not say which process they are of",
    "sampler_off": "the sampler records nothing",
    "sampler_tears": "the sampler drops spans whose caller is recorded",
    "sampler_overrules": "the sampler records spans whose caller is not",
    "sampler_fails": "the sampler raises",
    "ids_repeat": "the id generator gives an id twice, or none that is valid",
    # instrumentation
    "instrumented_twice": "two instrumentations of one thing",
    "other_tracer": "another tracer is loaded beside OpenTelemetry",
    "version_conflict": "an instrumentor that does nothing with the installed version of its library",
    "library_untested": "a library of a version that tracefill was not tested with",
    "patch_failed": "an integration that could not be switched on",
    "patch_lost": "somebody has put another function in the place of our patch",
    "library_not_covered": "the application uses a library that nothing carries the context over",
    "handoff_not_covered": "nothing carries the context into threads and executors",
    # an application
    "request_not_sent": "the application is neither ASGI nor WSGI",
    "span_missing": "a request makes no server span",
    "not_extracted": "a request that brings a trace begins a new one",
    "request_failed": "the application raised",
    "complaint": "OpenTelemetry complained",
}


@dataclass(frozen=True)
class Finding:
    """See the module. `config` is the line to add or to change; a `note` is no fault of itself."""

    cause: str
    what: str
    cure: str
    config: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    note: bool = False

    def __post_init__(self) -> None:
        assert self.cause in CAUSES, self.cause

    def to_json(self) -> dict[str, Any]:
        """The finding as the document has it."""
        return {
            "cause": self.cause,
            "what": self.what,
            "evidence": dict(self.evidence),
            "cure": {"text": self.cure, "config": self.config},
        }
