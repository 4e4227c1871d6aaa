"""pytest-benchmark: the everyday run. `make bench-quick`; compare with `pytest benchmarks --benchmark-compare`."""

from __future__ import annotations

import pytest

from benchmarks import codec, timing

CASES = codec.cases()


@pytest.mark.parametrize("side", ["stock", "ours"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_row(case: timing.Case, side: str, benchmark: object) -> None:
    timing.check(case)
    benchmark.group = case.name
    benchmark(eval(f"lambda: {getattr(case, side)}", dict(case.names)))
