"""A file of sampling strategies as Jaeger reads it, and the answer that Jaeger then gives to each service.

Two halves, in the order of the journey. Reading is Go's ``encoding/json``: the names of keys in any case, unknown keys
passed over, of two equal keys the later written into the earlier, ``null`` for "not given". Answering is Jaeger 2.13's
file provider and the JSON of its ``/sampling`` page; the tests ask a real Jaeger.
"""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from tracefill._codec import TracefillError

PROBABILISTIC = "probabilistic"
RATE_LIMITING = "ratelimiting"

# What a server gives that was not told otherwise (``default_sampling_probability``). The built-in configuration of
# the all-in-one says 1, so that a laptop never shows what production drops.
DEFAULT_PROBABILITY = 0.001

MOST_PER_SECOND = 2**15 - 1  # the page speaks Thrift, which has 16 bits for a rate limit


class UnreadableStrategies(TracefillError):
    """Jaeger would not start with this file, or would keep the one it had; the message says why."""


# --- the file --------------------------------------------------------------------------------------------------------


@dataclass
class Strategy:
    """One rule: a probability (0..1) or a number of traces per second."""

    type: str = ""
    param: float = 0.0
    given: set[str] = field(default_factory=set, compare=False)  # the keys that its object has
    others: dict[str, Any] = field(default_factory=dict, compare=False)  # the keys that Jaeger passes over


@dataclass
class OperationStrategy(Strategy):
    """The rule for one span name of a service."""

    operation: str = ""


@dataclass
class ServiceStrategy(Strategy):
    """The rule for a service, and those for its operations. None stands for ``null``."""

    service: str = ""
    operation_strategies: list[OperationStrategy | None] = field(default_factory=lambda: _Array())


@dataclass
class Strategies:
    """A whole file, and the paths of the keys that it gives twice."""

    default_strategy: ServiceStrategy | None = None
    service_strategies: list[ServiceStrategy | None] = field(default_factory=lambda: _Array())
    given: set[str] = field(default_factory=set, compare=False)
    others: dict[str, Any] = field(default_factory=dict, compare=False)
    repeated: list[str] = field(default_factory=list, compare=False)


def read(path: str | Path) -> Strategies:
    """The strategies of a file. Raises UnreadableStrategies where Jaeger would refuse it, OSError without a file."""
    return parse(Path(path).read_bytes())


def parse(text: str | bytes) -> Strategies:
    """The strategies of a JSON text. Raises UnreadableStrategies where Jaeger would refuse it.

    >>> parse('{"default_strategy": {"type": "probabilistic", "param": 0.5}}').default_strategy.param
    0.5
    """
    document = _load(text.decode("utf-8", "go") if isinstance(text, bytes) else text)
    strategies = Strategies()
    if document is not None:
        _fill(strategies, document, "", strategies.repeated)
    return strategies


class JsonObject(list[tuple[str, Any]]):
    """A JSON object as it was written: its keys in order, repeated ones too."""


_Item = TypeVar("_Item")


class _Array(list[_Item]):
    """A Go slice: what a shorter one left behind its end shows through when a longer one is written over it."""

    beyond: list[Any] = []  # noqa: RUF012  never changed in place


def _one_sign_a_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("go", _one_sign_a_byte)


def _load(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=JsonObject, parse_int=float, parse_constant=_no_constant)
    except RecursionError:
        raise UnreadableStrategies("nested too deeply") from None
    except ValueError as error:
        raise UnreadableStrategies(f"not JSON: {error}") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _fill(target: Any, value: Any, path: str, repeated: list[str]) -> None:
    """Write a JSON object into a dataclass, key by key."""
    if not isinstance(value, JsonObject):
        raise UnreadableStrategies(f"{path or 'the file'}: expected an object, found {_kind(value)}")
    seen: set[str] = set()
    for key, item in value:
        name = _field_name(target, key)
        if name is None:
            target.others[_text_of(key)] = item
            continue
        where = f"{path}.{name}".lstrip(".")
        if name in seen:
            repeated.append(where)
        seen |= {name} if item is not None else set()
        target.given |= seen
        setattr(target, name, _READERS[name](getattr(target, name), item, where, repeated))


def fill_key(target: Any, key: str, value: Any, path: str) -> None:
    """Give one of a rule's `known_keys` a value as it was read; raises UnreadableStrategies for another kind."""
    _fill(target, JsonObject([(key, value)]), path, [])


def known_keys(target: Any) -> list[str]:
    """The keys that Jaeger reads of the object that became this rule."""
    return [f.name for f in fields(target) if f.name in _READERS]


def _field_name(target: Any, key: str) -> str | None:
    """Go takes a key in any case, and with the letters that fold to it (a long s for an s)."""
    names = known_keys(target)
    return next((name for name in names if len(name) == len(key) and name == key.casefold()), None)


def _text(old: str, value: Any, path: str, _: list[str]) -> str:
    if value is None:
        return old
    if not isinstance(value, str):
        raise UnreadableStrategies(f"{path}: expected a text, found {_kind(value)}")
    return _text_of(value)


def _text_of(value: str) -> str:
    """Half a surrogate pair becomes the replacement character."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _number(old: float, value: Any, path: str, _: list[str]) -> float:
    if value is None:
        return old
    if not isinstance(value, float):
        raise UnreadableStrategies(f"{path}: expected a number, found {_kind(value)}")
    if math.isinf(value):
        raise UnreadableStrategies(f"{path}: the number is too large")
    return value


def _service(old: ServiceStrategy | None, value: Any, path: str, repeated: list[str]) -> ServiceStrategy | None:
    entry: ServiceStrategy | None = _element(old, value, path, repeated, ServiceStrategy)
    return entry


def _services(old: Any, value: Any, path: str, repeated: list[str]) -> _Array[Any]:
    return _array(old, value, path, repeated, ServiceStrategy)


def _operations(old: Any, value: Any, path: str, repeated: list[str]) -> _Array[Any]:
    return _array(old, value, path, repeated, OperationStrategy)


_READERS: dict[str, Callable[..., Any]] = {
    "type": _text,
    "param": _number,
    "service": _text,
    "operation": _text,
    "operation_strategies": _operations,
    "default_strategy": _service,
    "service_strategies": _services,
}


def _array(old: _Array[Any], value: Any, path: str, repeated: list[str], make: Callable[[], Any]) -> _Array[Any]:
    new: _Array[Any] = _Array()
    if value is None:
        return new
    if not isinstance(value, list) or isinstance(value, JsonObject):
        raise UnreadableStrategies(f"{path}: expected a list, found {_kind(value)}")
    memory = [*old, *old.beyond]
    for index, item in enumerate(value):
        before = memory[index] if index < len(memory) else None
        new.append(_element(before, item, f"{path}[{index}]", repeated, make))
    new.beyond = memory[len(new) :] if new else []
    return new


def _element(old: Any, value: Any, path: str, repeated: list[str], make: Callable[[], Any]) -> Any:
    if value is None:
        return None
    element = make() if old is None else old
    _fill(element, value, path, repeated)
    return element


def _kind(value: Any) -> str:
    if isinstance(value, JsonObject):
        return "an object"
    names = {list: "a list", str: "a text", bool: "a truth value", float: "a number", type(None): "null"}
    return names[type(value)]


# --- the answers -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Operations:
    """The rates of operations, in the server's order, and the rate of all others. Where one is named twice, clients
    take the last."""

    rest: float
    rates: tuple[tuple[str, float], ...] = ()

    def rate(self, operation: str | None) -> float:
        """The rate of one operation; that of the others for None and for a name not in the list."""
        return dict[str | None, float](self.rates).get(operation, self.rest)


@dataclass(frozen=True)
class Answer:
    """What Jaeger tells a service: a probability or a limit, and perhaps a list of operations.

    Clients look at the list first: where there is one, the limit is not in force.
    """

    probability: float | None = None
    per_second: int | None = None  # 32 bits, as gRPC has it
    operations: Operations | None = None

    @classmethod
    def of_page(cls, page: Mapping[str, Any]) -> Answer:
        """The answer on a page, of Jaeger or of another server: zeros may be left out. Raises ValueError or TypeError
        for what is no such page.

        >>> Answer.of_page({"strategyType": "PROBABILISTIC", "probabilisticSampling": {}}).probability
        0.0
        """
        probability, limit = page.get("probabilisticSampling"), page.get("rateLimitingSampling")
        if probability is None and limit is None:
            raise ValueError("neither a probability nor a rate limit")
        operations = page.get("operationSampling")
        return cls(
            None if probability is None else float(probability.get("samplingRate", 0)),
            None if limit is None else int(limit.get("maxTracesPerSecond", 0)),
            None if operations is None else _operations_of_page(operations),
        )

    @property
    def is_error(self) -> bool:
        """Whether the page has no answer but an error (a limit of more than 16 bits)."""
        return self.per_second is not None and self.per_second > MOST_PER_SECOND

    @property
    def limit_on_page(self) -> int:
        """The limit as the page has it, which wraps what is below its 16 bits."""
        return _wrapped(self.per_second or 0, 16)

    @property
    def http(self) -> dict[str, Any] | None:
        """The JSON of the ``/sampling`` page; None where it answers 500."""
        if self.is_error:
            return None
        page: dict[str, Any] = {"strategyType": 0 if self.per_second is None else 1}
        if self.probability is not None:
            page["probabilisticSampling"] = {"samplingRate": self.probability}
        if self.per_second is not None:
            page["rateLimitingSampling"] = {"maxTracesPerSecond": self.limit_on_page}
        if self.operations is not None:
            page["operationSampling"] = _operations_page(self.operations)
        return page


def _operations_of_page(page: Mapping[str, Any]) -> Operations:
    rates = tuple(
        (str(rate.get("operation", "")), float((rate.get("probabilisticSampling") or {}).get("samplingRate", 0)))
        for rate in page.get("perOperationStrategies") or ()
    )
    return Operations(float(page.get("defaultSamplingProbability", 0)), rates)


def _operations_page(operations: Operations) -> dict[str, Any]:
    rates = [{"operation": name, "probabilisticSampling": {"samplingRate": rate}} for name, rate in operations.rates]
    return {
        "defaultSamplingProbability": operations.rest,
        "defaultLowerBoundTracesPerSecond": 0,
        "perOperationStrategies": rates,
        "defaultUpperBoundTracesPerSecond": 0,
    }


@dataclass(frozen=True)
class Served:
    """The answers of a server with one file: one a service that the file names, and one for all others."""

    default: Answer
    by_service: dict[str, Answer]

    def answer(self, service: str) -> Answer:
        """Names are compared to the letter."""
        return self.by_service.get(service, self.default)


def effective(
    strategies: Strategies, service: str, default_probability: float = DEFAULT_PROBABILITY
) -> dict[str, Any] | None:
    """The JSON that Jaeger answers at ``/sampling?service=``; None where it answers with an error, or not at all.

    >>> effective(parse('{"service_strategies": [{"service": "a", "type": "ratelimiting", "param": 2.7}]}'), "a")
    {'strategyType': 1, 'rateLimitingSampling': {'maxTracesPerSecond': 2}}
    """
    if any(nulls(strategies)):
        return None
    return serve(strategies, default_probability).answer(service).http


def nulls(strategies: Strategies) -> Iterator[str]:
    """Where a ``null`` stands in place of an entry: it ends the server's process."""
    for path, entry in entries(strategies):
        if entry is None:
            yield path
        else:
            named = enumerate(entry.operation_strategies)
            yield from (f"{path}.operation_strategies[{index}]" for index, operation in named if operation is None)


def entries(strategies: Strategies) -> Iterator[tuple[str, ServiceStrategy | None]]:
    """Each rule for a service and where it stands, the default first."""
    if strategies.default_strategy is not None:
        yield "default_strategy", strategies.default_strategy
    for index, entry in enumerate(strategies.service_strategies):
        yield f"service_strategies[{index}]", entry


def serve(strategies: Strategies, default_probability: float = DEFAULT_PROBABILITY) -> Served:
    """All answers of a server that was started with this file; entries that are ``null`` are passed over."""
    default = Answer(probability=default_probability)
    if strategies.default_strategy is not None:
        default = _answer(strategies.default_strategy, default_probability)
    return Served(
        default,
        {
            entry.service: _merged(_answer(entry, default_probability), default.operations)
            for entry in strategies.service_strategies
            if entry is not None
        },
    )


def _answer(entry: ServiceStrategy, default_probability: float) -> Answer:
    own = rule(entry, default_probability)
    if not entry.operation_strategies:
        return own
    rest = default_probability if own.probability is None else own.probability
    served = (
        (operation, rule(operation, default_probability)) for operation in entry.operation_strategies if operation
    )
    rates = tuple((operation.operation, r.probability) for operation, r in served if r.probability is not None)
    return Answer(own.probability, own.per_second, Operations(rest, rates))


def rule(strategy: Strategy, default_probability: float) -> Answer:
    """What one rule comes to by itself. An unknown type gets the server's default, not the file's."""
    if strategy.type == PROBABILISTIC:
        return Answer(probability=strategy.param)
    if strategy.type == RATE_LIMITING:
        return Answer(per_second=_whole(strategy.param))
    return Answer(probability=default_probability)


def _merged(own: Answer, default: Operations | None) -> Answer:
    """The default strategy's operations are everybody's; a service's own come first."""
    if default is None:
        return own
    if own.operations is None:
        rest = default.rest if own.probability is None else own.probability
        return Answer(own.probability, own.per_second, Operations(rest, default.rates))
    named = {name for name, _ in own.operations.rates}
    more = tuple(rate for rate in default.rates if rate[0] not in named)
    return Answer(own.probability, own.per_second, Operations(own.operations.rest, own.operations.rates + more))


def _whole(param: float) -> int:
    """As an x86-64 processor makes 32 bits of a float: cut off, and the lowest number where it does not fit."""
    whole = math.trunc(param)
    return whole if -(2**31) <= whole < 2**31 else -(2**31)


def _wrapped(number: int, bits: int) -> int:
    half = 1 << (bits - 1)
    return (number + half) % (2 * half) - half
