"""The audit's document, read by people: the words that the terminal, the page and the comparison share.

The document is what ``tracefill.audit.chains.audit`` returns and ``--json`` prints. Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from shlex import quote
from typing import Any

Document = dict[str, Any]
Finding = dict[str, Any]
Edge = dict[str, Any]

DAMAGED_NAMED, HINTS = 5, 5

MEANING = {
    "not_propagated": "the caller did not send its context",
    "not_extracted": "the callee did not read the context it was sent",
    "format_mismatch": "the two sides speak different headers, or something between them drops the headers",
    "id_truncated": "one side cut the trace id down to 64 bits",
    "handoff_lost": "work moved to another thread or task and left its context behind",
    "scope_too_short": "the consumer's span ended before the handler ran",
    "sampled_out": "the caller's span was not sampled, the callee's was",
    "not_exported": "the parent span never reached the backend",
    "unfinished": "the parent span never ended",
    "duplicate_id": "two different spans share one id",
    "several_roots": "one trace has more than one beginning",
    "cycle": "a span is its own ancestor",
    "glued": "repeated runs hang below a parent that ended long before them",
    "premature_end": "the parent ended before its child began",
    "clock_skew": "the two clocks disagree",
    "exported_twice": "the same span was exported twice",
}


def percent(part: int, whole: int) -> str:
    """The share in per cent, never rounded up to all or down to none; ``-`` when there is nothing to share.

    >>> percent(1410, 1500), percent(19_999, 20_000), percent(0, 0)
    ('94.0 %', '99.9 %', '-')
    """
    if not whole:
        return "-"
    if part in (0, whole):
        return f"{100 * part // whole}.0 %"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.1f} %"


def headline(document: Document) -> str:
    """The one line that matters.

    >>> headline({"chains": {"whole": 1410, "total": 1500}})
    '1410 of 1500 chains whole (94.0 %)'
    """
    whole, total = document["chains"]["whole"], document["chains"]["total"]
    return f"{whole} of {total} chains whole ({percent(whole, total)})"


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Findings by damage: those that break a chain before those that do not, then the more frequent."""
    return sorted(findings, key=lambda finding: (not finding["breaks"], -finding["count"], finding["cause"]))


def worst_edges_first(edges: Iterable[Edge]) -> list[Edge]:
    """Edges by what they lost, then by traffic."""
    return sorted(edges, key=lambda edge: (edge["kept"] - edge["total"], -edge["total"], route(edge)))


def route(where: Finding | Edge) -> str:
    """Between whom.

    >>> route({"from": "orders", "to": "mailer", "via": "orders.placed"})
    'orders -> mailer via orders.placed'
    >>> route({"from": "web", "to": "web", "via": ""})
    'in web'
    """
    sides = f"in {where['to']}" if where["from"] == where["to"] else f"{where['from']} -> {where['to']}"
    return f"{sides} via {where['via']}" if where.get("via") else sides


def remarks(document: Document) -> list[str]:
    """What to know about the numbers: one sentence for each thing that there was."""
    read, window, chains = document["input"], document["window"], document["chains"]
    first, last = clock_time(window["start_unix_nano"]), clock_time(window["end_unix_nano"])
    seconds = f"{window['edge_seconds']:g} s"
    said = [
        (read["spans"], f"{counted(read['spans'], 'span')} from {first} to {last} UTC"),
        (not read["spans"], "no spans"),
        (chains["torn_off"], f"{counted(chains['torn_off'], 'trace')} torn off from the rest of a chain"),
        (chains["begun_outside"], f"{counted(chains['begun_outside'], 'chain')} begun by callers outside of the data"),
        (
            window["left_out"],
            f"{counted(window['left_out'], 'chain')} not judged, within {seconds} of the window's edges",
        ),
        (read["duplicate_spans"], f"{counted(read['duplicate_spans'], 'span')} doubled, counted once"),
        (read["skipped_spans"], f"{counted(read['skipped_spans'], 'span')} skipped: no valid ids or times"),
        (read["damaged_records"], f"{counted(read['damaged_records'], 'damaged record')} skipped"),
    ]
    return [sentence for count, sentence in said if count] + _damaged(read["damaged"])


def _damaged(places: list[dict[str, Any]]) -> list[str]:
    named = [f"{place['file']}, record {place['record']}: {place['reason']}" for place in places[:DAMAGED_NAMED]]
    return named + (["..."] if len(places) > len(named) else [])


def counted(number: int, thing: str) -> str:
    """A number and its thing.

    >>> counted(1, "span"), counted(2, "span")
    ('1 span', '2 spans')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def doubtful_entries(document: Document) -> list[str]:
    """Hints: operations whose lost callers may be strangers, and the option that says so."""
    return [
        f"{counted(entry['count'], 'caller')} of {entry['operation']} ({entry['service']}) left no other trace. "
        f"If they are strangers, say so: --outside {quote(entry['outside'])}"
        for entry in document.get("doubtful_entries", ())[:HINTS]
    ]


def clock_time(unix_nano: str | int, pattern: str = "%Y-%m-%d %H:%M:%S") -> str:
    """A time of the document, in UTC; ``-`` for one that no calendar has.

    >>> clock_time("1767225600000000000")
    '2026-01-01 00:00:00'
    """
    try:
        return datetime.fromtimestamp(int(unix_nano) // 10**9, timezone.utc).strftime(pattern)
    except (ValueError, OverflowError, OSError):
        return "-"


def plain(text: object) -> str:
    """A stranger's text without control characters: no service name moves a terminal's cursor.

    >>> print(plain("shop\\x1b[2J"))
    shop\\x1b[2J
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in str(text))
