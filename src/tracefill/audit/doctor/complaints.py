"""What OpenTelemetry and tracefill log while an application is being imported."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tracefill.audit.doctor.finding import Finding

LOGGERS = ("opentelemetry", "tracefill")

# part of the message, cause, cure, line
_KNOWN = (
    (
        "Overriding of current TracerProvider",
        "provider_set_twice",
        "set it once; the second is ignored, its exporters with it",
        "trace.set_tracer_provider(provider)",
    ),
    ("while already instrumented", "instrumented_twice", "call instrument() of each instrumentor once", None),
    ("nothing can be instrumented", "version_conflict", "tracefill's integration instead", "tracefill.install()"),
    (
        "could not be switched on",
        "patch_failed",
        "leave it out, and tell us the version",
        "tracefill.install(skip=[...])",
    ),
)
# `settings.py` has found these by the variables.
_TOLD = ("Couldn't recognize sampler", "TRACES_SAMPLER_ARG", "Failed to load context", "Propagator ")


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextmanager
def listening() -> Iterator[list[str]]:
    """Gives the list that the messages of a warning or worse go to, while it is open."""
    kept = _Kept()
    for name in LOGGERS:
        logging.getLogger(name).addHandler(kept)
    try:
        yield kept.messages
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(kept)


def findings(messages: list[str]) -> Iterator[Finding]:
    """A finding for each message, those that say nothing new left out."""
    for message in dict.fromkeys(messages):
        if any(part in message for part in _TOLD):
            continue
        for part, cause, cure, config in _KNOWN:
            if part in message:
                yield Finding(cause, message, cure, config)
                break
        else:
            yield Finding("complaint", message, "see the message", note=True)
