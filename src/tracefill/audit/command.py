"""``tracefill audit``: from sources to a report, a page, a document, a comparison, and an exit code.

The document is that of ``tracefill.audit.chains``, and ``sources``: what was audited, as it was named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from tracefill.audit import chains, readers
from tracefill.audit.compare import compare
from tracefill.audit.document import Document, headline, plain
from tracefill.audit.html import page
from tracefill.audit.progress import shown
from tracefill.audit.readers import SourceError
from tracefill.audit.report import render, render_comparison
from tracefill.audit.waterfall import waterfalls

DONE, BELOW, UNREADABLE = 0, 1, 2
HEAD_BYTES = 200

Number = TypeVar("Number", int, float)

EXAMPLE = """\
examples:
  tracefill audit spans.jsonl
  tracefill audit exported/*.jsonl --html report.html
  tracefill audit spans.jsonl --json --fail-under 0.99 > audit.json
  tracefill audit --compare before.jsonl after.jsonl

exit codes: 0 done; 1 below --fail-under, or worse than what it is compared with;
2 nothing could be read."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "How complete the chains of spans are, which edges break them, why, and the line that mends it."
    )
    parser.epilog = EXAMPLE
    parser.add_argument(
        "source",
        metavar="SOURCE",
        nargs="*",
        help="what was exported: files, folders, patterns, URLs of a Jaeger or a ClickHouse, - for standard input; "
        "or a document that --json printed earlier",
    )
    parser.add_argument("--json", action="store_true", help="print the document (schema tracefill.audit/1)")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write the report as one HTML page")
    parser.add_argument(
        "--examples", metavar="N", type=_examples, default=chains.EXAMPLES, help="spans a finding: a number, or all"
    )
    parser.add_argument(
        "--edge",
        metavar="SECONDS",
        type=_seconds,
        help="how near to the ends of the data a missing parent is nobody's fault; 0: nowhere "
        "(default: a twentieth of the data's time, at most 30)",
    )
    parser.add_argument("--fail-under", metavar="SHARE", type=_share, help="exit 1 when fewer chains are whole: 0.99")
    parser.add_argument(
        "--outside",
        metavar="OPERATION",
        action="append",
        default=[],
        help="an operation that strangers call: a span name, or service:span name; * is anything; may be repeated",
    )
    parser.add_argument(
        "--compare",
        metavar="OTHER",
        nargs="+",
        help="compare SOURCE (before) with OTHER (after), or the first OTHER with the second; "
        "exit 1 when after is worse beyond chance",
    )


def _examples(text: str) -> int | None:
    return None if text == "all" else _number(text, int, sys.maxsize, "a number of spans, or all")


def _seconds(text: str) -> float:
    return _number(text, float, 1e9, "seconds, such as 30")


def _share(text: str) -> float:
    return _number(text, float, 1, "a share from 0 to 1, such as 0.99")


def _number(text: str, kind: Callable[[str], Number], most: float, expected: str) -> Number:
    with suppress(ValueError):
        if 0 <= kind(text) <= most:
            return kind(text)
    raise argparse.ArgumentTypeError(f"expected {expected}, found {text!r}")


def run(arguments: argparse.Namespace) -> int:
    """Prints the report, the document or the comparison; returns DONE, BELOW or UNREADABLE."""
    try:
        documents = [_document(names, arguments) for names in _sides(arguments)]
        if arguments.html:
            arguments.html.write_text(page(documents[-1]), encoding="utf-8")
    except (SourceError, OSError) as error:
        return _complain(str(error), UNREADABLE)
    comparison = compare(*documents) if len(documents) > 1 else None
    _print(documents[-1], comparison, as_json=arguments.json)
    return _exit_code(documents, comparison, arguments.fail_under)


def _sides(arguments: argparse.Namespace) -> list[list[str]]:
    """The sources to audit: one list of them, or two to compare. Raises SourceError where they are not named."""
    match arguments.source, arguments.compare:
        case [], [before, after]:
            return [[before], [after]]
        case [], None:
            raise SourceError("name a SOURCE, such as spans.jsonl")
        case [], _:
            raise SourceError("--compare takes two things, or one beside a SOURCE")
        case source, other:
            return [source, other] if other else [source]


def _document(names: list[str], arguments: argparse.Namespace) -> Document:
    """The document about these sources: the saved one, or what their spans tell."""
    if saved := _saved(names):
        return saved
    with shown(Console(stderr=True)) as progress:
        spans = readers.read(names, progress=progress)
    document = chains.audit(
        spans, edge_seconds=arguments.edge, outside=arguments.outside, examples=arguments.examples
    ) | {"sources": names}
    return document | {"waterfalls": waterfalls(spans, document)} if arguments.html else document


def _saved(names: list[str]) -> Document | None:
    """A document that --json wrote; None when this is not one."""
    path = Path(names[0])
    if len(names) > 1 or not path.is_file():
        return None
    with path.open("rb") as file:
        if f'"schema": "{chains.SCHEMA}"'.encode() not in file.read(HEAD_BYTES):
            return None
    try:
        return dict(json.loads(path.read_bytes()))
    except ValueError as error:
        raise SourceError(f"{path}: not the whole of what --json printed: {error}") from None


def _print(document: Document, comparison: Document | None, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(comparison or document, indent=2))
    elif comparison:
        render_comparison(comparison, Console(highlight=False))
    else:
        render(document, Console(highlight=False))


def _exit_code(documents: list[Document], comparison: Document | None, fail_under: float | None) -> int:
    for document in documents:
        if not document["input"]["spans"]:
            return _complain(f"no spans in {', '.join(document['sources'])}", UNREADABLE)
    if fail_under is not None and documents[-1]["chains"]["share"] < fail_under:
        return _complain(f"{headline(documents[-1])}, less than --fail-under {fail_under}", BELOW)
    return BELOW if comparison and comparison["worse"] else DONE


def _complain(sentence: str, exit_code: int) -> int:
    print(f"tracefill audit: {plain(sentence)}", file=sys.stderr)
    return exit_code
