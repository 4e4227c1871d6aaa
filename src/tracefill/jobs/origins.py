"""Who asked a scheduler of this process for a job, and when: kept beside the job, for as long as the job lives."""

from __future__ import annotations

import time
import weakref
from dataclasses import dataclass
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import get_current_span

from tracefill.snapshots import Snapshot, snapshot

__all__ = ["Origin", "Origins", "origin"]


@dataclass(slots=True)
class Origin:
    """`here`: the position of whoever asked; None where nobody did."""

    here: Snapshot | None
    asked_ms: float
    runs: int = 0

    @property
    def context(self) -> Context | None:
        return None if self.here is None else self.here.to_context()

    def is_over(self) -> bool:
        """True when a further run is no part of what was asked for: it has run once, and nobody waits for it any more."""
        return self.runs > 0 and not (self.here is not None and get_current_span(self.context).is_recording())


def origin() -> Origin:
    """That of a job which is asked for now."""
    here = snapshot()
    return Origin(here if here.is_valid else None, time.time() * 1000)


class Origins:
    """By the identity of the job: it may not hash, and must not be kept alive."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Any], Origin]] = {}

    def __setitem__(self, job: Any, asked: Origin) -> None:
        key = id(job)
        self._of[key] = weakref.ref(job, lambda _: self._of.pop(key, None)), asked

    def get(self, job: Any) -> Origin | None:
        found = self._of.get(id(job))
        return found[1] if found is not None and found[0]() is job else None

    def forget(self, job: Any, asked: Origin | None) -> None:
        """The job has run for the last time, unless somebody has asked for it again meanwhile."""
        if asked is not None and self.get(job) is asked:
            del self._of[id(job)]
