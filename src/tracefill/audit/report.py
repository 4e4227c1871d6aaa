"""The audit on a terminal: how many chains are whole, which edges break them, why, and the line that mends it.

Colour says nothing that the words do not say, the text fits into 80 columns, and the line of a cure is never wrapped,
so that it can be copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracefill.audit.document import (
    MEANING,
    Document,
    Finding,
    counted,
    doubtful_entries,
    headline,
    percent,
    plain,
    remarks,
    route,
    worst_edges_first,
    worst_first,
)

ROWS_SHOWN = 12
INDENT = 13


def render(document: Document, console: Console) -> None:
    """Prints the whole report; the headline comes first and stands alone."""
    whole = document["chains"]["whole"] == document["chains"]["total"]
    console.print(Text(headline(document), style="bold green" if whole else "bold red"))
    for remark in remarks(document):
        console.print(_text(remark, "dim"))
    _print_parts(document, console)
    _print_findings(document, console)


def render_comparison(comparison: Document, console: Console) -> None:
    """Prints what ``compare`` returned: both headlines, the verdict, then what got worse, better, new or gone."""
    for side in ("before", "after"):
        console.print(_text(f"{side + ':':8}{headline(comparison[side])}"))
        console.print(_text(" " * 8 + ", ".join(comparison[side]["sources"]), "dim"))
    worse = comparison["worse"]
    verdict = "WORSE: more than chance explains" if worse else "not worse, as far as chance allows to tell"
    console.print(Text(verdict, style="bold red" if worse else "bold green"))
    console.print(_text(comparison["rule"], "dim"))
    changed = [_compared(edge) for edge in comparison["edges"] if edge["verdict"] != "same"]
    print_table(console, "Edges", ("", "before", "share", "after", "share", "edge"), changed)
    unchanged = counted(len(comparison["edges"]) - len(changed), "edge")
    console.print(f"\n{unchanged} without a difference beyond chance", style="dim")
    findings = [
        (finding["verdict"], str(finding["before"]), str(finding["after"]), finding["cause"], route(finding))
        for finding in comparison["findings"]
    ]
    print_table(console, "Findings", ("", "before", "after", "cause", "where"), findings)


def _compared(edge: dict[str, Any]) -> tuple[str, ...]:
    return edge["verdict"], *_kept(edge["before"]), *_kept(edge["after"]), route(edge)


def _print_parts(document: Document, console: Console) -> None:
    layers = [_kept(row, row["layer"]) for row in document.get("by_layer", ())]
    print_table(console, "Completeness per layer", ("kept", "share", "layer"), layers)
    edges = [_kept(edge, edge["layer"], route(edge)) for edge in worst_edges_first(document["edges"])]
    print_table(console, "Completeness per edge", ("kept", "share", "layer", "edge"), edges)


def _kept(row: dict[str, Any], *names: str) -> tuple[str, ...]:
    return f"{row['kept']} of {row['total']}", percent(row["kept"], row["total"]), *names


def print_table(console: Console, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table under its title, the worst rows of it; nothing when there are none."""
    if not rows:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for head in heads:
        table.add_column(
            head, justify="right" if head in ("kept", "share", "before", "after") else "left", overflow="fold"
        )
    for row in rows[:ROWS_SHOWN]:
        table.add_row(*(_text(cell) for cell in row))
    print_title(console, title)
    console.print(Padding(table, (0, 0, 0, 2), expand=False))
    if len(rows) > ROWS_SHOWN:
        console.print(f"  and {len(rows) - ROWS_SHOWN} more, see --json or --html", style="dim")


def print_title(console: Console, title: str) -> None:
    console.print()
    console.print(title, style="bold")


def _print_findings(document: Document, console: Console) -> None:
    findings = worst_first(document["findings"])
    if document["chains"]["total"]:
        print_title(console, "What breaks, worst first" if findings else "Nothing breaks.")
    for finding in findings:
        console.print()
        _print_finding(finding, console)
    for hint in doubtful_entries(document):
        console.print()
        console.print(_text(hint))


def _print_finding(finding: Finding, console: Console) -> None:
    title = f"{finding['count']} x {finding['cause']}: {MEANING.get(finding['cause'], '')}"
    console.print(_text(title, "bold red" if finding["breaks"] else "bold yellow"))
    for label, text in _fields(finding):
        _print_field(console, label, text)
    for line in (finding["cure"].get("config") or "").splitlines():
        console.print(_text(" " * INDENT + line, "cyan"), soft_wrap=True)


def _fields(finding: Finding) -> Iterable[tuple[str, str]]:
    yield "where", f"{route(finding)} ({finding['layer']})"
    yield "library", finding["library"]
    yield "seen", finding["evidence"]
    if finding["also_possible"]:
        yield "or maybe", ", ".join(finding["also_possible"])
    for example in finding["examples"]:
        yield "example", f"span {example['span_id']} of trace {example['trace_id']}"
        if near := example.get("near"):
            yield "near", f"span {near['span_id']} of trace {near['trace_id']}"
    yield "cure", finding["cure"]["text"]


def _print_field(console: Console, label: str, text: str) -> None:
    field = Table.grid(padding=(0, 1, 0, 0))
    field.add_column(width=INDENT - 3, style="dim")
    field.add_column(overflow="fold")
    field.add_row(label, _text(text))
    console.print(Padding(field, (0, 0, 0, 2), expand=False))


def _text(text: str, style: str = "") -> Text:
    return Text(plain(text), style)
