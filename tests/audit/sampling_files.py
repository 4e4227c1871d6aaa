"""Generated strategies files: every key left out, repeated, in another case, or with a value at an edge."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

SERVICES = [
    "orders",
    "Orders",
    "orders ",
    "",
    "web",
    "mailer",
    "lager-größe",
    "a&b=c",
    "nobody",
    '"strategyType":"PROBABILISTIC"',
]
OPERATIONS = ["GET /", "get /", "/health", "", "λ", "checkout"]

# A key is most often written as it should be; Go also takes it in another case, and passes over what it does not know.
CASES = st.sampled_from(
    [str, str, str, str, str.upper, str.title, lambda key: key.replace("s", "\u017f"), "not_{}".format]
)
TYPES = st.sampled_from(
    ["probabilistic", "ratelimiting", "probabilistic", "ratelimiting", "", "const", "Probabilistic"]
)
EDGES = [
    0.9,
    2.7,
    1,
    0,
    -0.5,
    -1,
    80,
    32767,
    32767.9,
    32768,
    65536,
    -40000,
    2**31 - 1,
    2**31,
    -(2**31),
    3e9,
    1e300,
    5e-324,
]
PARAMS = st.sampled_from(EDGES) | st.floats(0, 1) | st.floats(-1e5, 1e5) | st.integers(0, 100)


def maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(values, values, values, values, st.none())


@st.composite
def json_object(draw: st.DrawFn, fields: dict[str, st.SearchStrategy[str]], most_fields: int = 6) -> str:
    """The text of an object: fields left out, repeated, in any order."""
    names = draw(st.lists(st.sampled_from(sorted(fields)), min_size=len(fields) // 2, max_size=most_fields))
    names += draw(st.sampled_from([[], sorted(fields)]))
    members = [f"{json.dumps(draw(CASES)(name))}: {draw(fields[name])}" for name in names]
    return "{" + ", ".join(members) + "}"


def json_list(items: st.SearchStrategy[str], most: int) -> st.SearchStrategy[str]:
    return st.lists(items, max_size=most).map(lambda texts: "[" + ", ".join(texts) + "]") | st.just("null")


def text_of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    return st.tuples(maybe(values), st.booleans()).map(lambda pair: json.dumps(pair[0], ensure_ascii=pair[1]))


RULE = {"type": text_of(TYPES), "param": text_of(PARAMS)}
OPERATION = json_object(RULE | {"operation": text_of(st.sampled_from(OPERATIONS))})
RULES = RULE | {"operation_strategies": json_list(OPERATION, 4)}
SERVICE = json_object(RULES | {"service": text_of(st.sampled_from(SERVICES))})
DEFAULT = st.one_of(json_object(RULES), json_object(RULES), st.just("null"))


@st.composite
def files(draw: st.DrawFn) -> str:
    """The text of a strategies file that ends with its list of services, as the server's helper asks for."""
    members = draw(st.lists(DEFAULT.map('"default_strategy": {}'.format), max_size=2))
    members += draw(st.lists(json_list(SERVICE, 6).map('"service_strategies": {}'.format), max_size=2))
    members.append('"service_strategies": [' + ", ".join(draw(st.lists(SERVICE, max_size=8))) + "]")
    return "{" + ", ".join(members) + "}"
