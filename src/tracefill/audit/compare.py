"""Two audits side by side: before and after a change, or the old revision and its canary.

Whatever the two saw differs by chance alone, too. So nothing is called worse or better unless Fisher's exact test (one
side) says that chance would seldom do that much: 1 % for the whole comparison, shared evenly between its chains and all
of its edges, so that looking at many edges does not cry wolf. Edges and findings are matched without their library, as
the library is often what has been changed.

The document of ``--compare --json``, version 1 (within it fields are added, never renamed or given another meaning)::

    schema          "tracefill.compare/1"
    rule            the rule above, in one sentence
    worse           whether the chains or an edge are worse: exit code 1
    before, after   sources, and chains as in ``tracefill.audit/1``
    chains          verdict: worse, better, same; chance: how likely chance alone does as much
    edges           from, to, layer, via; before and after: kept, total; verdict (new and gone, too), chance
    findings        cause, breaks, layer, from, to, via, cure; before, after: the counts; verdict: new, gone, stays
"""

from __future__ import annotations

from collections import defaultdict
from math import exp, inf, lgamma
from typing import Any

from tracefill.audit.document import Document, Edge, Finding

SCHEMA = "tracefill.compare/1"
LEVEL = 0.01
RULE = (
    "worse or better: chance alone would do that much in less than 1 % of all comparisons "
    "(Fisher's exact test, one-sided, the 1 % shared between the chains and every edge)"
)

Share = tuple[int, int]  # kept, total
Key = tuple[str, ...]


def compare(before: Document, after: Document) -> dict[str, Any]:
    """The ``tracefill.compare/1`` document: both completenesses, each edge's verdict, findings new and gone.

    ``worse`` is true when the chains or an edge of ``after`` are kept less often than chance explains.
    """
    edges_before, edges_after = _edges(before), _edges(after)
    level = LEVEL / (1 + len(edges_before.keys() & edges_after.keys()))
    chains = _verdict(_chains(before), _chains(after), level)
    edges = [
        dict(zip(("from", "to", "layer", "via"), key, strict=True))
        | _both(edges_before.get(key, (0, 0)), edges_after.get(key, (0, 0)), level)
        for key in sorted(edges_before.keys() | edges_after.keys())
    ]
    return {
        "schema": SCHEMA,
        "rule": RULE,
        "worse": any(judged["verdict"] == "worse" for judged in (chains, *edges)),
        "before": {"sources": before["sources"], "chains": before["chains"]},
        "after": {"sources": after["sources"], "chains": after["chains"]},
        "chains": chains,
        "edges": sorted(edges, key=lambda edge: (_ORDER[edge["verdict"]], edge["chance"])),
        "findings": _compare_findings(before, after),
    }


_ORDER = {verdict: place for place, verdict in enumerate(("worse", "better", "new", "gone", "same"))}


def chance_of_less(kept: int, total: int, *, of_kept: int, of_total: int) -> float:
    """How likely ``total`` drawn blindly from all of both holds ``kept`` or fewer: the hypergeometric tail.

    >>> round(chance_of_less(0, 5, of_kept=5, of_total=5), 4)  # 1 of the 252 ways
    0.004
    """
    all_kept, everything = kept + of_kept, total + of_total
    all_lost = everything - all_kept
    likelihood = exp(_log_choose(all_kept, kept) + _log_choose(all_lost, total - kept) - _log_choose(everything, total))
    sum_ = 0.0
    while likelihood > sum_ * 1e-16 and kept >= 0:
        sum_ += likelihood
        likelihood *= kept * (all_lost - total + kept) / ((all_kept - kept + 1) * (total - kept + 1))
        kept -= 1
    return min(sum_, 1.0)


def _log_choose(n: int, k: int) -> float:
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) if 0 <= k <= n else -inf


def _both(before: Share, after: Share, level: float) -> dict[str, Any]:
    sides = {"before": _counts(before), "after": _counts(after)}
    if not before[1] or not after[1]:
        return sides | {"verdict": "gone" if before[1] else "new", "chance": 1.0}
    return sides | _verdict(before, after, level)


def _counts(share: Share) -> dict[str, int]:
    return {"kept": share[0], "total": share[1]}


def _verdict(before: Share, after: Share, level: float) -> dict[str, Any]:
    fell = after[0] * before[1] < before[0] * after[1]
    low, high = (after, before) if fell else (before, after)
    chance = chance_of_less(*low, of_kept=high[0], of_total=high[1]) if before[1] and after[1] else 1.0
    if chance >= level:
        return {"verdict": "same", "chance": chance}
    return {"verdict": "worse" if fell else "better", "chance": chance}


def _chains(document: Document) -> Share:
    return document["chains"]["whole"], document["chains"]["total"]


def _edges(document: Document) -> dict[Key, Share]:
    shares: dict[Key, Share] = defaultdict(lambda: (0, 0))
    for edge in document["edges"]:
        kept, total = shares[_edge_key(edge)]
        shares[_edge_key(edge)] = kept + edge["kept"], total + edge["total"]
    return shares


def _edge_key(where: Edge | Finding) -> Key:
    return tuple(where[name] or "" for name in ("from", "to", "layer", "via"))


def _compare_findings(before: Document, after: Document) -> list[dict[str, Any]]:
    counts: dict[Key, list[int]] = defaultdict(lambda: [0, 0])
    samples: dict[Key, Finding] = {}
    for side, document in enumerate((before, after)):
        for finding in document["findings"]:
            key = (finding["cause"], *_edge_key(finding))
            counts[key][side] += finding["count"]
            samples[key] = finding
    rows = [_finding_row(samples[key], *count) for key, count in counts.items()]
    return sorted(rows, key=lambda row: (not row["breaks"], row["before"] - row["after"], row["cause"]))


def _finding_row(finding: Finding, before: int, after: int) -> dict[str, Any]:
    named = {name: finding[name] for name in ("cause", "breaks", "layer", "from", "to", "via", "cure")}
    verdict = "stays" if before and after else "new" if after else "gone"
    return named | {"before": before, "after": after, "verdict": verdict}
