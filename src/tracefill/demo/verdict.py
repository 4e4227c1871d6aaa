"""What the exported spans of the two runs say: how many chains are whole, where the others broke, and one of them as a tree."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.tree import Tree

from tracefill.audit import chains, readers
from tracefill.audit.document import percent
from tracefill.audit.spans import Spans
from tracefill.demo import jaeger, traffic
from tracefill.demo.system import CannotStart, System

MODES = {"stock": "stock OpenTelemetry + contrib", "tracefill": "tracefill"}
CALLERS = len(traffic.STOREFRONTS) + 1
KINDS = ("", "internal", "server", "client", "producer", "consumer")


def compare(count: int, keep: str | None, jaeger_url: str | None, *, as_json: bool) -> int:
    """Runs the shop in both modes and prints the comparison; 0 when every chain of the tracefill run is whole."""
    notes = Console(stderr=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(keep or scratch)
        documents: dict[str, dict[str, Any]] = {}
        try:
            collector = jaeger.endpoint(jaeger_url) if jaeger_url else None
            for mode, title in MODES.items():
                (folder / mode).mkdir(parents=True, exist_ok=True)
                run_shop(mode, title, folder / mode, count, notes)
                spans = readers.read([str(path) for path in sorted((folder / mode).glob("*.jsonl"))], processes=1)
                documents[mode] = dict(chains.audit(spans, edge_seconds=0))
                if collector:
                    jaeger.send(collector, folder / mode)
        except (CannotStart, jaeger.NoJaeger) as error:
            notes.print(str(error), markup=False)
            return 2
    if as_json:
        json.dump({"schema": "tracefill.demo/1", "runs": documents}, sys.stdout, indent=1)
        print()
    else:
        report(documents, spans)
    if collector:
        _say_where(collector, documents, notes)
    held = documents["tracefill"]["chains"]
    return 0 if held["whole"] == held["total"] else 1


def run_shop(mode: str, title: str, folder: Path, count: int, notes: Console) -> None:
    """One run: the shop up, the traffic sent, everything arrived, the shop down and its spans written."""
    for old in (*folder.glob("*.jsonl"), *folder.glob("shop.sqlite*")):
        old.unlink()
    columns = (TextColumn("{task.description:42}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes) as progress:
        step = progress.add_task(f"{title}: starting the shop", total=2 * CALLERS * count)
        with System(mode, folder) as system:
            progress.update(step, description=f"{title}: orders")
            for placed in traffic.send(system.gateway, folder, count):
                progress.update(step, completed=placed // 2)
            progress.update(step, description=f"{title}: until all have arrived")
            for found in traffic.arrived(system.database, 2 * CALLERS * count):
                progress.update(step, completed=CALLERS * count // 2 + found * 3 // 4)
            progress.update(step, description=f"{title}: stopping the shop")
        progress.update(step, description=f"{title}: done", completed=2 * CALLERS * count)


def report(documents: dict[str, dict[str, Any]], spans: Spans) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print("\nOne order, by tracefill", style="bold")
    console.print(tree_of_the_longest(spans))
    table = Table(title="Chains that are whole", title_justify="left", title_style="bold")
    for head in ("", "whole", "of", "share", "broken between"):
        table.add_column(head, justify="left" if head in ("", "broken between") else "right")
    for mode, title in MODES.items():
        held = documents[mode]["chains"]
        table.add_row(
            title,
            str(held["whole"]),
            str(held["total"]),
            percent(held["whole"], held["total"]),
            broken_edges(documents[mode]),
        )
    console.print(table)


def _say_where(collector: str, documents: dict[str, dict[str, Any]], notes: Console) -> None:
    notes.print("\nThe same from Jaeger:")
    for document in documents.values():
        source = jaeger.audit_source(collector, document["window"])
        notes.print(f"  tracefill audit --edge 0 '{source}'", soft_wrap=True, highlight=False, markup=False)


def broken_edges(document: dict[str, Any]) -> str:
    lines = [
        f"{finding['from']} -> {finding['to']}: {finding['cause']} ({finding['count']})"
        for finding in sorted(document["findings"], key=lambda finding: -finding["count"])
        if finding["breaks"]
    ]
    return "\n".join(lines) or "-"


def tree_of_the_longest(spans: Spans) -> Tree:
    """The trace with the most spans, each under its parent."""
    ids = np.stack([spans["trace_id_high"], spans["trace_id_low"]], axis=1)
    _, which, sizes = np.unique(ids, axis=0, return_inverse=True, return_counts=True)
    rows = np.flatnonzero(which.ravel() == int(np.argmax(sizes)))
    rows = rows[np.argsort(spans["start"][rows], kind="stable")]
    below: dict[int, list[int]] = {}
    present = {int(spans["span_id"][row]) for row in rows}
    for row in rows.tolist():
        parent = int(spans["parent_id"][row])
        below.setdefault(parent if parent in present else 0, []).append(row)
    tree = Tree(f"trace {int(ids[rows[0], 0]):016x}{int(ids[rows[0], 1]):016x}")
    _grow(tree, below, 0, spans)
    return tree


def _grow(tree: Tree, below: dict[int, list[int]], parent: int, spans: Spans) -> None:
    for row in below.pop(parent, []):
        took = (int(spans["end"][row]) - int(spans["start"][row])) / 1e6
        service, name, kind = spans.text("service", row), spans.text("name", row), KINDS[spans["kind"][row]]
        label = f"{service}: {name} ({kind}, {took:.1f} ms)"
        _grow(tree.add(label, highlight=False), below, int(spans["span_id"][row]), spans)
