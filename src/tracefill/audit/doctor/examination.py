"""All the checks in order, and the document `tracefill.doctor/1`.

{"schema": "tracefill.doctor/1", "healthy": false,
 "findings": [{"cause": "service_name_missing", "what": "...", "evidence": {}, "cure": {"text": "...", "config": "..."}}],
 "notes": [...],                        # the same; none of them is a fault of itself
 "environment": {"python": "3.11.4", "releases": {...}, "context": "...", "propagator": {"parts", "reads", "writes"},
                 "provider": {"set", "class", "processors", "sampler", "id_generator", "resource"},
                 "instrumentors": [...], "installed": [...], "waiting": [...], "counters": {...}}}
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tracefill
from tracefill import _codec
from tracefill.audit.doctor import complaints, headers, integrations, provider, request, settings
from tracefill.audit.doctor.finding import Finding
from tracefill.audit.doctor.request import ORDINARY, Request

SCHEMA = "tracefill.doctor/1"


@dataclass(frozen=True)
class Examination:
    """What was found out: `findings` are faults, `notes` are not, `environment` says what there is."""

    findings: list[Finding]
    notes: list[Finding]
    environment: dict[str, Any]

    @property
    def healthy(self) -> bool:
        return not self.findings

    def document(self) -> dict[str, Any]:
        """The document of ``--json``."""
        return {
            "schema": SCHEMA,
            "healthy": self.healthy,
            "findings": [finding.to_json() for finding in self.findings],
            "notes": [note.to_json() for note in self.notes],
            "environment": self.environment,
        }


def examine(app: Any = None, *, send: Request | None = ORDINARY) -> Examination:
    """Examines this process. `app`: an application that is set up; it gets the request `send` (None: none).

    >>> import tracefill
    >>> [finding.cause for finding in examine().findings if finding.cause == "propagator_missing"]
    []
    """
    return examined(list(settings.findings()), app, [], send)


def examined(found: list[Finding], app: Any, messages: list[str], send: Request | None) -> Examination:
    """The same, with what is known already: findings, and what OpenTelemetry logged while the application was imported."""
    counters = _codec.counters()  # before we send headers of our own
    propagator, failure = _propagator()
    found += failure or [*headers.findings(propagator), *headers.arrived(counters, propagator["reads"])]
    held = provider.current()
    shown = held or provider.as_configured()
    if shown is not None:
        found += provider.findings(shown)
    found += _where_spans_go(held, app)
    found += integrations.findings()
    if app is not None and send and _can_ask(held) and propagator["reads"]:
        found += request.findings(app, held, propagator["reads"], send)
    found += complaints.findings(messages)
    return Examination(
        [finding for finding in found if not finding.note],
        [finding for finding in found if finding.note],
        _environment(propagator, held, shown, counters),
    )


def _propagator() -> tuple[dict[str, Any], list[Finding]]:
    try:
        return headers.described(), []
    except Exception as error:
        fault = Finding("propagator_fails", f"the global propagator raises {error!r}", "take another", headers.OURS)
        return {"parts": [], "reads": [], "writes": []}, [fault]


def _where_spans_go(held: Any, app: Any) -> Iterator[Finding]:
    if held is None:
        if app is not None:
            yield provider.missing()
        elif os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
            yield provider.exporter_missing("OTEL_TRACES_EXPORTER=none")
    elif provider.processors(held) == []:
        yield provider.exporter_missing("the TracerProvider has no span processor")


def _can_ask(held: Any) -> bool:
    return provider.processors(held) is not None and not getattr(held, "_disabled", False)


def _environment(propagator: dict[str, Any], held: Any, shown: Any, counters: dict[str, Any]) -> dict[str, Any]:
    from opentelemetry import context

    runtime = type(context._RUNTIME_CONTEXT)
    malformed = [
        {"format": name, "reason": reason, "count": count} for (name, reason), count in counters["malformed"].items()
    ]
    return {
        "python": platform.python_version(),
        "releases": settings.releases(),
        "context": f"{runtime.__module__}.{runtime.__qualname__}",
        "propagator": propagator,
        "provider": {"set": held is not None, **(provider.described(shown) if shown is not None else {})},
        "instrumentors": list(integrations.instrumentors()),
        "installed": tracefill.installed(),
        "waiting": integrations.waiting(),
        "counters": {**counters, "malformed": malformed},
    }
