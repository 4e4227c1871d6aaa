"""python -m tests.boundaries FILE [NAME ...] [--mode MODE ...]: runs boundary programs and prints their verdicts."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import sys

from tests.boundaries import judge, program


def inside(path: str, name: str) -> None:
    program.load(path)
    found = program.BOUNDARIES[name]
    program.write({"expect": found.expect, "statements": found.statements})
    result = found.function(program.Program())
    if inspect.iscoroutine(result):
        asyncio.run(result)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.boundaries", description=__doc__)
    parser.add_argument("file")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--mode", action="append", choices=judge.MODES)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        inside(arguments.file, arguments.names[0])
        return 0
    program.load(arguments.file)
    failed = 0
    for name in arguments.names or program.BOUNDARIES:
        found = program.BOUNDARIES[name]
        for mode in arguments.mode or judge.MODES:
            verdict = judge.run(arguments.file, name, mode)
            right = verdict.word == ("connected" if found.expect in ("direct", "later") else found.expect)
            failed += "tracefill" in mode and not right
            print(
                f"{'ok ' if right else 'GAP'} {mode:18} {verdict.word:13} {found.name}"
                + ("" if right else f"  [{verdict.detail}]"),
                flush=True,
            )
    return 1 if failed else 0


sys.exit(main())
