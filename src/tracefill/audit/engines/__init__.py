"""The measures, taken where the spans are: in a ClickHouse cluster, in DuckDB, or in the table in memory.

For people with more spans than anybody would move. Counted is what can be counted trace by trace: how many are whole by
their shape, what is wrong with the others, over time; every edge that is kept; and where far sides begin anew and near
sides stay unanswered, so that one knows which stretch of time to audit for its causes. All engines agree to the row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

SCHEMA = "tracefill.measures/1"
BUCKET_SECONDS = 3600


class Bucket(NamedTuple):
    """Traces that began in one stretch of time, and how many of them have each fault.

    One whose only fault is a parent that is missing near the edge of the window is left out.
    """

    start_unix_nano: int
    traces: int
    whole: int
    left_out: int
    missing_parents: int
    several_roots: int
    duplicate_ids: int
    truncated: int
    cycles: int
    begun_outside: int


class Edge(NamedTuple):
    """A way into SERVER or CONSUMER spans, and how many took it."""

    source: str
    target: str
    layer: str
    via: str
    library: str
    kept: int


class FarSide(NamedTuple):
    """SERVER or CONSUMER spans without a caller: `missing` have a parent that is not there, and is no stranger;
    `begun` have neither parent nor link, though others call this operation."""

    service: str
    name: str
    library: str
    missing: int
    begun: int


class NearSide(NamedTuple):
    """CLIENT or PRODUCER spans, not to databases, that nothing continues: no child, no link."""

    service: str
    name: str
    library: str
    destination: str
    unanswered: int


@dataclass
class Measures:
    """What an engine found; every list is in order."""

    spans: int = 0
    duplicate_spans: int = 0
    skipped_spans: int = 0
    start_unix_nano: int = 0
    end_unix_nano: int = 0
    over_time: list[Bucket] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    far_sides: list[FarSide] = field(default_factory=list)
    near_sides: list[NearSide] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The measures as a document; times are decimal strings, as in `tracefill.audit/1`.

        >>> Measures(over_time=[Bucket(7, 2, 1, 0, 1, 0, 0, 0, 0, 0)]).as_json()["over_time"][0]["start_unix_nano"]
        '7'
        """
        told = {"schema": SCHEMA} | {name: _plain(value) for name, value in vars(self).items()}
        for owner in (told, *told["over_time"]):
            owner |= {name: str(owner[name]) for name in owner.keys() & {"start_unix_nano", "end_unix_nano"}}
        return told


def _plain(value: Any) -> Any:
    return [row._asdict() for row in value] if isinstance(value, list) else value
