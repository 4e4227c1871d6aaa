"""The invariants of the codec on as many inputs as wanted: `python -m tests.codec.fuzz --count 1000000 [--format b3]`.

Every input follows from the seed; the seed, the number of the input and the input are printed when an invariant breaks.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from random import Random

from tests.codec.inputs import Inputs
from tests.codec.invariants import check, check_baggage
from tests.codec.reference import ORACLES, Value


def main(arguments: list[str] | None = None) -> int:
    names = [*ORACLES, "baggage"]
    parser = argparse.ArgumentParser(prog="python -m tests.codec.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="inputs a format (default: %(default)s)")
    parser.add_argument("--format", choices=names, action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="default: from the clock")
    options = parser.parse_args(arguments)
    print(f"seed {options.seed}", flush=True)
    return max([fuzz(name, options.count, options.seed) for name in options.format or names])


def fuzz(name: str, count: int, seed: int) -> int:
    """0 when all invariants held, 1 when one broke."""
    inputs, holds = Inputs(name, Random(f"{seed} {name}")), invariants_of(name)
    started, valid = time.monotonic(), 0
    for number in range(1, count + 1):
        values = inputs.next_values()
        try:
            valid += bool(holds(values))
        except Exception as broken:
            print(f"\n{name}: input {number} of seed {seed} breaks an invariant: {values!r}\n{broken!r}", flush=True)
            return 1
        if number % 10_000 == 0 or number == count:
            show_progress(name, number, count, valid, time.monotonic() - started)
    print(flush=True)
    return 0


def invariants_of(name: str) -> Callable[[tuple[Value, ...]], object]:
    if name == "baggage":
        return lambda values: check_baggage(tuple(value for value in values if value is not None))
    return lambda values: check(name, values)


def show_progress(name: str, number: int, count: int, valid: int, seconds: float) -> None:
    left = seconds / number * (count - number)
    print(f"\r{name}: {number:,} of {count:,}, {valid:,} valid, {left:.0f} s left ", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
