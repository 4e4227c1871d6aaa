"""How two ways of doing one thing are timed side by side."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Case:
    """One row. `stock` and `ours` are expressions over `names`; `check(stock result, ours result)` says whether ours is right.

    `least` is the floor of the design for stock / ours; `added` subtracts what the plain thing costs from both.
    """

    name: str
    stock: str
    ours: str
    names: Mapping[str, Any]
    check: Callable[[Any, Any], bool]
    least: float
    added: str = "pass"
    unit: str = "x"
    group: str = ""
    details: dict[str, float] = field(default_factory=dict)


@dataclass
class Result:
    case: Case
    stock_ns: float
    ours_ns: float

    @property
    def ratio(self) -> float:
        return self.stock_ns / self.ours_ns if self.ours_ns > 0 else float("inf")

    @property
    def reached(self) -> bool:
        return self.ratio >= self.case.least


def loop(statement: str, names: Mapping[str, Any]) -> Callable[[int], float]:
    """ns a turn of a compiled loop over the statement."""
    scope = dict(names)
    source = (
        "def run(count, clock=clock):\n turns = range(count)\n begun = clock()\n"
        f" for _ in turns: {statement}\n return (clock() - begun) / count\n"
    )
    scope["clock"] = time.perf_counter_ns
    exec(source, scope)
    made: Callable[[int], float] = scope["run"]
    return made


def check(case: Case) -> None:
    stock = eval(case.stock, dict(case.names))
    ours = eval(case.ours, dict(case.names))
    if not case.check(stock, ours):
        sys.exit(f"{case.name}: a wrong answer is not timed\n  stock: {stock!r}\n  ours:  {ours!r}")


def measure(case: Case, rounds: int = 60, sample_ns: float = 60_000) -> Result:
    """The minimum of many samples of both, interleaved, net of the empty loop (or of `added`)."""
    stock, ours, plain = (loop(statement, case.names) for statement in (case.stock, case.ours, case.added))
    turns = [max(20, int(sample_ns / max(run(50), 1))) for run in (stock, ours, plain)]
    best = [float("inf")] * 3
    was_on = gc.isenabled()
    gc.disable()
    try:
        for _ in range(rounds):
            for i, run in enumerate((stock, ours, plain)):
                best[i] = min(best[i], run(turns[i]))
    finally:
        if was_on:
            gc.enable()
    return Result(case, best[0] - best[2], best[1] - best[2])
