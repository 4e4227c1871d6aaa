"""Every boundary file of this folder, under every mode that tracefill takes part in.

TRACEFILL_SHORT=1: each program with tracefill alone, and every second one beside contrib, in one of the two orders, by turns.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import pytest

from tests.boundaries import judge, program

FILES = sorted(
    str(path.relative_to(judge.ROOT))
    for path in Path(__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "__main__", "program", "judge", "test_boundaries")
)

# Boundaries that still lose the chain, each with the reason; `make test` counts them as expected failures.
OPEN: dict[tuple[str, str], str] = {}


def cases() -> list[object]:
    found = []
    for path in FILES:
        program.BOUNDARIES.clear()
        program.load(path)
        for name, case in program.BOUNDARIES.items():
            for mode in modes(name) if judge.constant(path, "CONTRIB") else judge.MODES[2:3]:
                why = OPEN.get((Path(path).stem, name))
                marks = [pytest.mark.xfail(reason=why, strict=False)] if why else []
                found.append(pytest.param(path, name, mode, case, id=f"{Path(path).stem}-{name}-{mode}", marks=marks))
    return found


def modes(name: str) -> tuple[str, ...]:
    if os.environ.get("TRACEFILL_SHORT") != "1":
        return judge.MODES[2:]
    turn = zlib.crc32(name.encode()) % 4
    return judge.MODES[2:3] + judge.MODES[3 + turn : 4 + turn]


@pytest.mark.parametrize(("path", "name", "mode", "case"), cases())
def test_the_chain_is_whole(
    path: str, name: str, mode: str, case: program.Boundary, request: pytest.FixtureRequest
) -> None:
    addresses = {server: str(request.getfixturevalue(server).address) for server in case.needs}
    verdict = judge.run(path, name, mode, addresses)
    assert verdict.word == ("connected" if case.expect in ("direct", "later") else case.expect), verdict.detail
