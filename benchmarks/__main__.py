"""python -m benchmarks [--rounds N] [--json] [--only TEXT] [--instructions]: the table of the design, with what was reached.

Stock OpenTelemetry and tracefill are timed in one process, interleaved, each by the minimum of many short samples; the rows that
fall short of their floor are marked. Exit code 1 when one does. On a busy machine take the best of several runs, or
`--instructions`, which counts instructions with valgrind and moves with nothing but the code.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import date
from importlib.metadata import version

from benchmarks import codec, timing


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=60, help="samples of each, the best counts (default 60)")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this text")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--instructions", action="store_true", help="instructions a call, counted by valgrind")
    parser.add_argument("--one", nargs=3, metavar=("ROW", "SIDE", "COUNT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rows = [case for case in all_cases() if arguments.only in case.name]
    if arguments.one:
        return run_one(*arguments.one)
    for case in rows:
        timing.check(case)
    if arguments.instructions:
        return count_instructions(rows)
    results = []
    for case in rows:
        results.append(timing.measure(case, arguments.rounds))
        if not arguments.json:
            print(line(results[-1]), flush=True)
    memory = codec.memory()
    if arguments.json:
        print(json.dumps(document(results, memory), indent=1))
    else:
        for what, taken, most in memory:
            print(f"{'ok   ' if taken <= most else 'SHORT'} {what:44} {taken:9.0f} bytes          at most {most:.0f}")
        print(machine())
    short = [r.case.name for r in results if not r.reached] + [what for what, taken, most in memory if taken > most]
    if short and not arguments.json:
        print(f"fell short: {', '.join(short)}")
    return 1 if short else 0


def all_cases() -> list[timing.Case]:
    from benchmarks import data, handoff, http, messages, peers, sdk

    return [case for module in (codec, handoff, sdk, http, messages, data, peers) for case in module.cases()]


def line(result: timing.Result) -> str:
    case = result.case
    mark = "ok   " if result.reached else "SHORT"
    if case.unit == "calls":
        return f"{mark} {case.name:44} {1 / result.ratio:9.1f} no-op calls    at most {1 / case.least:.1f}"
    return f"{mark} {case.name:44} {result.stock_ns:9.0f} ns {result.ours_ns:7.0f} ns {result.ratio:7.1f}x   at least {case.least:g}x"


def machine() -> str:
    names = ("opentelemetry-api", "opentelemetry-sdk", "ddtrace", "tracefill")
    return (
        f"{date.today()}, {platform.python_implementation()} {platform.python_version()}, {platform.machine()}; "
        + ", ".join(f"{name} {version(name)}" for name in names)
    )


def document(results: list[timing.Result], memory: list[tuple[str, float, float]]) -> dict[str, object]:
    return {
        "schema": "tracefill.bench/1",
        "machine": machine(),
        "rows": [
            {"name": r.case.name, "stock_ns": r.stock_ns, "ours_ns": r.ours_ns, "ratio": r.ratio, "least": r.case.least, "reached": r.reached}
            for r in results
        ],
        "memory": [{"name": what, "bytes": taken, "most": most} for what, taken, most in memory],
    }  # fmt: skip


def run_one(name: str, side: str, count: str) -> int:
    """What valgrind runs: one side of one row, so many times."""
    case = next(case for case in all_cases() if case.name == name)
    timing.loop(getattr(case, side), case.names)(int(count))
    return 0


def count_instructions(rows: list[timing.Case]) -> int:
    if not shutil.which("valgrind"):
        print("valgrind is not here; on Debian: apt-get install valgrind", file=sys.stderr)
        return 2
    for case in rows:
        stock, ours = (instructions(case.name, side) for side in ("stock", "ours"))
        print(f"{case.name:50} {stock:9.0f} {ours:9.0f} instructions a turn {stock / ours:7.1f}x", flush=True)
    return 0


def instructions(name: str, side: str) -> float:
    """Of one turn: the difference between two runs, so that start-up does not count."""
    counts = []
    for turns in (2_000, 12_000):
        command = [
            "valgrind",
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            sys.executable,
            "-m",
            "benchmarks",
            "--one",
            name,
            side,
            str(turns),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "0"}
        )
        found = re.search(r"Collected : (\d+)", done.stderr)
        assert found, done.stderr[-500:]
        counts.append(int(found[1]))
    return (counts[1] - counts[0]) / 10_000


sys.exit(main())
