"""The time that the data covers, and its edges, where parents may be missing because nobody looked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracefill.audit.numbering import Array
from tracefill.audit.spans import Spans

EDGE_SECONDS_AT_MOST = 30.0
EDGES_PER_WINDOW = 20
SECOND = 1_000_000_000


@dataclass
class Window:
    """From the first start to the last end; all in nanoseconds."""

    start: int
    end: int
    edge: int

    @staticmethod
    def of(spans: Spans, edge_seconds: float | None = None) -> Window:
        """The window of the spans; the edge is the lesser of 30 s and a twentieth of the window unless it is given."""
        if not len(spans):
            return Window(0, 0, round((edge_seconds or 0) * SECOND))
        start, end = int(spans["start"].min()), int(spans["end"].max())
        if edge_seconds is None:
            edge_seconds = min(EDGE_SECONDS_AT_MOST, (end - start) / SECOND / EDGES_PER_WINDOW)
        return Window(start, end, round(edge_seconds * SECOND))

    def holds(self, times: Array) -> Array:
        """Whether the times are a whole edge away from both ends."""
        return np.asarray((times - self.start >= self.edge) & (self.end - times >= self.edge))
