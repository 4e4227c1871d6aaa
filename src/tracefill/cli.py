"""``tracefill demo | audit | sampling | doctor | bench``.

A command is a module with ``add_arguments(parser)`` and ``run(arguments) -> int``. It is imported when it is called and
not before, so that each needs only its own extra. Exit codes beyond the command's own: 2 a mistake on the command line
or a missing extra, 130 interrupted, 141 whoever read our output has gone.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Command(NamedTuple):
    """Where a command lives, the extra that it needs, and its line in ``tracefill --help``."""

    module: str
    extra: str
    help: str


COMMANDS = {
    "demo": Command("tracefill.demo", "demo", "see a small shop lose its chains, and keep them"),
    "audit": Command("tracefill.audit.command", "audit", "how complete the chains are, what breaks them, and why"),
    "sampling": Command("tracefill.audit.sampling", "audit", "where sampling strategies drop spans in silence"),
    "doctor": Command("tracefill.audit.doctor", "sdk", "what in this environment loses the context, and its cure"),
    "bench": Command("benchmarks", "sdk", "the benchmarks, on this machine (in a checkout)"),
}

EXAMPLE = """\
example:
  tracefill audit spans.jsonl --html report.html

'tracefill COMMAND --help' shows an example of each."""

BENCH_EXAMPLE = """\
example:
  tracefill bench --json

All further options go to the benchmarks: python -m benchmarks --help"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; raises SystemExit for a mistake on the command line.

    >>> main(["audit"])  # and says on standard error that it misses a SOURCE
    2
    """
    _print_whatever_strangers_sent()
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        try:
            return _call(name, rest)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit complains once more
        return 141


def _print_whatever_strangers_sent() -> None:
    """A name that the terminal's encoding cannot show is escaped; it does not end the report."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _call(name: str, arguments: list[str]) -> int:
    if name not in COMMANDS:
        _parser().parse_args([name])
    return _bench(arguments) if name == "bench" else _run(name, arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tracefill",
        description="Chains of spans that break nowhere, and an audit of those that do.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {importlib.metadata.version('tracefill')}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.help)
    return parser


def _run(name: str, arguments: list[str]) -> int:
    command = COMMANDS[name]
    try:
        module = importlib.import_module(command.module)
        parser = _command_parser(name)
        module.add_arguments(parser)
        return int(module.run(parser.parse_intermixed_args(arguments)))
    except ModuleNotFoundError as error:
        return _missing(name, error)


def _missing(name: str, error: ModuleNotFoundError) -> int:
    if (error.name or "tracefill").partition(".")[0] == "tracefill":
        raise error  # not a missing extra: our own mistake
    extra = COMMANDS[name].extra
    print(f"tracefill {name} needs {error.name}: pip install 'tracefill[{extra}]'", file=sys.stderr)
    return 2


def _bench(arguments: list[str]) -> int:
    parser = _command_parser("bench")
    parser.description = "Times tracefill beside stock OpenTelemetry and the peers; exit code 1 when a row falls short."
    parser.epilog = BENCH_EXAMPLE
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.parse_known_args(arguments)
    for checkout in (Path(__file__).parents[2], Path.cwd()):
        if (checkout / "benchmarks" / "__main__.py").is_file():
            return subprocess.call([sys.executable, "-m", "benchmarks", *arguments], cwd=checkout)
    print(
        "tracefill bench runs in a checkout: the benchmarks and the peers they meet are not part of the package.\n"
        "Clone the repository, then: make bench",
        file=sys.stderr,
    )
    return 2


def _command_parser(name: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"tracefill {name}", formatter_class=argparse.RawDescriptionHelpFormatter)
