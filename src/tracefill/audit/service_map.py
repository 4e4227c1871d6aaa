"""The map of services: who calls whom from left to right, and in red where the chain breaks.

The layout is the classic one for layered graphs. Every service gets a rank: its longest way from where requests begin,
a call that closes a circle being laid out backwards. A link over several ranks passes through a free place in each of
them, and the order within the ranks is swept until the links cross little.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from math import inf
from statistics import fmean
from typing import NamedTuple

from tracefill.audit.document import Document, percent
from tracefill.audit.markup import Markup, element

SERVICES_SHOWN = 40
COLUMN, ROW, LANE = 260.0, 56.0, 22.0
BOX_WIDTH, BOX_HEIGHT = 156.0, 34.0
MARGIN, NOTE_HEIGHT = 14.0, 12.0
NAME_LENGTH = 19
LABEL_WIDTH, LABEL_HEIGHT = 48.0, 15.0
SWEEPS = 8

Pair = tuple[str, str]
Point = tuple[float, float]


class Place(NamedTuple):
    """A service, or (with ``towards``) where a long link from it passes a rank."""

    rank: int
    service: str
    towards: str = ""


class Link(NamedTuple):
    """All edges from one service to another, over all layers."""

    source: str
    target: str
    kept: int
    total: int


def service_map(document: Document) -> Markup | None:
    """The map as one SVG element; None when no service is seen calling another."""
    links, torn = _links(document), _torn_inside(document)
    shown = _shown(links, torn)
    links = [link for link in links if link.source in shown and link.target in shown]
    if not links:
        return None
    ways = _ways(shown, links)
    return _drawing(_heights(ways.values()), ways, links, torn)


def services_left_out(document: Document) -> int:
    """How many services the map has no room for: whole ones with little traffic."""
    links, torn = _links(document), _torn_inside(document)
    return len(_services(links)) - len(_shown(links, torn))


# --- what is on the map ---


def _links(document: Document) -> list[Link]:
    kept: Counter[Pair] = Counter()
    total: Counter[Pair] = Counter()
    for edge in document["edges"]:
        pair = (edge["from"] or "", edge["to"])
        kept[pair] += edge["kept"]
        total[pair] += edge["total"]
    return [Link(*pair, kept[pair], total[pair]) for pair in sorted(total) if pair[0] != pair[1]]


def _torn_inside(document: Document) -> Counter[str]:
    torn: Counter[str] = Counter()
    for finding in document["findings"]:
        if finding["breaks"] and finding["from"] == finding["to"]:
            torn[finding["to"]] += finding["count"]
    return torn


def _services(links: Iterable[Link]) -> set[str]:
    return {service for link in links for service in (link.source, link.target)}


def _shown(links: list[Link], torn: Counter[str]) -> set[str]:
    """All services, or if there are too many: the ends of what breaks, the most broken first, then the busy ones."""
    shown: set[str] = set()
    for link in sorted(links, key=lambda link: (link.kept - link.total, -link.total)):
        if len(shown | {link.source, link.target}) <= SERVICES_SHOWN:
            shown |= {link.source, link.target}
    return shown


# --- where it goes ---


def _ways(services: Iterable[str], links: list[Link]) -> dict[Pair, list[Place]]:
    """The places of each pair of services, from left to right; a call that closes a circle runs from right to left."""
    order = _order(services, {(link.source, link.target) for link in links})
    place = {service: number for number, service in enumerate(order)}
    pairs = sorted({_sorted_pair(link, place) for link in links}, key=lambda pair: (place[pair[0]], place[pair[1]]))
    ranks = _ranks(order, pairs)
    return {(left, right): _way(left, right, ranks) for left, right in pairs}


def _order(services: Iterable[str], pairs: set[Pair]) -> list[str]:
    """Callers before those they call, as far as circles allow."""
    order: list[str] = []
    waiting = set(services)
    while waiting:
        open_pairs = [pair for pair in pairs if waiting.issuperset(pair)]
        calls = Counter(source for source, _ in open_pairs)
        called = Counter(target for _, target in open_pairs)
        order.append(min(waiting, key=lambda name: (called[name] > 0, called[name] - calls[name], name)))
        waiting.remove(order[-1])
    return order


def _sorted_pair(link: Link, place: dict[str, int]) -> Pair:
    first, second = sorted((link.source, link.target), key=place.__getitem__)
    return first, second


def _ranks(order: list[str], pairs: list[Pair]) -> dict[str, int]:
    """How many links the longest way to each service has."""
    ranks: dict[str, int] = {}
    for service in order:
        ranks[service] = max((ranks[left] + 1 for left, right in pairs if right == service), default=0)
    return ranks


def _way(left: str, right: str, ranks: dict[str, int]) -> list[Place]:
    passed = [Place(rank, left, right) for rank in range(ranks[left] + 1, ranks[right])]
    return [Place(ranks[left], left), *passed, Place(ranks[right], right)]


def _heights(ways: Iterable[list[Place]]) -> dict[Place, float]:
    """How far down each place is: near its neighbours of the ranks beside it, and clear of its own rank."""
    before, after = defaultdict[Place, list[Place]](list), defaultdict[Place, list[Place]](list)
    ranks = defaultdict[int, dict[Place, None]](dict)  # dict: a set that keeps its order
    for way in ways:
        for place in way:
            ranks[place.rank][place] = None
        for left, right in pairwise(way):
            after[left].append(right)
            before[right].append(left)
    heights = {place: number * ROW for rank in ranks.values() for number, place in enumerate(rank)}
    for sweep in range(SWEEPS):
        beside = after if sweep % 2 else before
        for rank in sorted(ranks, reverse=bool(sweep % 2)):
            _settle(list(ranks[rank]), beside, heights)
    top = min(heights.values())
    return {place: height - top for place, height in heights.items()}


def _settle(rank: list[Place], beside: dict[Place, list[Place]], heights: dict[Place, float]) -> None:
    wish = {place: fmean(heights[other] for other in beside.get(place) or [place]) for place in rank}
    rank.sort(key=wish.__getitem__)
    bottom = -inf
    for place in rank:
        room = (LANE if place.towards else ROW) / 2
        heights[place] = max(wish[place], bottom + room)
        bottom = heights[place] + room
    too_low = fmean(heights[place] - wish[place] for place in rank)
    for place in rank:
        heights[place] -= too_low


# --- what it looks like ---


def _drawing(
    heights: dict[Place, float], ways: dict[Pair, list[Place]], links: list[Link], torn: Counter[str]
) -> Markup:
    width = max(place.rank for place in heights) * COLUMN + BOX_WIDTH + 2 * MARGIN
    height = max(heights.values()) + BOX_HEIGHT + NOTE_HEIGHT + 2 * MARGIN
    labels: list[Point] = []
    calls = {(link.source, link.target) for link in links}
    whole_first = sorted(links, key=lambda link: link.kept < link.total)  # what breaks is drawn on top
    return element(
        "svg",
        element("title", _summary(links, torn), id="map-said"),
        element("defs", _arrow_head("whole"), _arrow_head("broken")),
        *(_link(link, ways, heights, 6.0 * ((link.target, link.source) in calls), labels) for link in whole_first),
        *(_service(place, heights[place], torn) for place in heights if not place.towards),
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        style=f"width:100%;max-width:{width:.0f}px;min-width:{0.8 * width:.0f}px",
        role="img",
        aria_labelledby="map-said",
    )


def _summary(links: list[Link], torn: Counter[str]) -> str:
    broken = [_said(link) for link in links if link.kept < link.total]
    inside = [f"{_named(service)}: {count} torn inside" for service, count in torn.items()]
    size = f"{len(_services(links))} services, {len(links)} links"
    return f"{size}. {'; '.join(broken + inside) or 'None breaks'}."


def _said(link: Link) -> str:
    return f"{_named(link.source)} to {_named(link.target)}: {link.kept} of {link.total} kept"


def _arrow_head(state: str) -> Markup:
    return element(
        "marker",
        element("path", d="M0,0 L8,4 L0,8 z", class_=f"arrow {state}"),
        id=f"arrow-{state}",
        viewBox="0 0 8 8",
        refX=8,
        refY=4,
        markerWidth=8,
        markerHeight=8,
        markerUnits="userSpaceOnUse",
        orient="auto-start-reverse",
    )


def _link(
    link: Link, ways: dict[Pair, list[Place]], heights: dict[Place, float], beside: float, labels: list[Point]
) -> Markup:
    forwards = (link.source, link.target) in ways
    way = ways[(link.source, link.target) if forwards else (link.target, link.source)]
    state = "broken" if link.kept < link.total else "whole"
    curve, places = _curve([(place, heights[place] + (beside if forwards else -beside)) for place in way])
    return element(
        "g",
        element("title", _said(link)),
        element("path", d=curve, **{"marker_end" if forwards else "marker_start": f"url(#arrow-{state})"}),
        _label(percent(link.kept, link.total), places, labels) if state == "broken" else "",
        class_=f"link {state}",
    )


def _curve(way: list[tuple[Place, float]]) -> tuple[str, list[Point]]:
    """The path through the places, level in each, and where its label may go: first near the end, where links part."""
    bend = COLUMN - BOX_WIDTH
    path = ""
    places: list[Point] = []
    for (left, left_y), (_, right_y) in pairwise(way):
        x, y, fall = MARGIN + left.rank * COLUMN + BOX_WIDTH, MARGIN + left_y + BOX_HEIGHT / 2, right_y - left_y
        start = f"{path} L" if path else "M"
        path = f"{start}{x:.0f},{y:.0f} c{bend / 2:.0f},0 {bend / 2:.0f},{fall:.0f} {bend:.0f},{fall:.0f}"
        places = [(x + bend * right, y + fall * down) for right, down in _ON_CURVE] + places
    return path, places


_ON_CURVE = [(1.5 * t * (1 - t) + t**3, 3 * t**2 - 2 * t**3) for t in (0.72, 0.5, 0.6, 0.4, 0.3)]


def _label(text: str, places: list[Point], labels: list[Point]) -> Markup:
    """The text at the first place where it covers no other label."""
    x, y = next((place for place in places if not any(_overlap(place, label) for label in labels)), places[0])
    labels.append((x, y))
    return element("text", text, x=x, y=y)


def _overlap(one: Point, other: Point) -> bool:
    return abs(one[0] - other[0]) < LABEL_WIDTH and abs(one[1] - other[1]) < LABEL_HEIGHT


def _service(place: Place, height: float, torn: Counter[str]) -> Markup:
    x, y = MARGIN + place.rank * COLUMN, MARGIN + height
    count = torn[place.service]
    name = _named(place.service)
    short = name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
    return element(
        "g",
        element("title", f"{name}: {count} torn inside" if count else name),
        element("rect", x=x, y=y, width=BOX_WIDTH, height=BOX_HEIGHT, rx=6),
        element("text", short, x=x + BOX_WIDTH / 2, y=y + BOX_HEIGHT / 2),
        element("text", f"{count} torn inside", x=x + BOX_WIDTH / 2, y=y + BOX_HEIGHT + 13, class_="inside")
        if count
        else "",
        class_="service broken" if count else "service",
    )


def _named(service: str) -> str:
    return service or "(unknown)"
