"""What the exported spans of the two runs say: how many chains are whole, where the others broke, and one of them as a tree."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tracefill.audit import chains, readers
from tracefill.audit.document import percent
from tracefill.audit.spans import SERVER, Spans
from tracefill.demo import jaeger, nginx, system, traffic
from tracefill.demo.processes import CannotStart, Processes
from tracefill.demo.servers import Servers
from tracefill.demo.tree import spans_of, spans_with, tree

MODES = {"stock": "stock OpenTelemetry + contrib", "tracefill": "tracefill"}
CALLERS = len(traffic.STOREFRONTS) + 1


@dataclass
class Verdict:
    """What the spans of a run say: the audit's document, and how many of the orders' steps stand on their order's chain."""

    document: dict[str, Any]
    on_chain: int
    steps: int

    @property
    def is_whole(self) -> bool:
        chains = self.document["chains"]
        return bool(chains["whole"] == chains["total"] and self.on_chain == self.steps)


def compare(count: int, keep: str | None, jaeger_url: str | None, *, as_json: bool) -> int:
    """Runs the shop in both modes and prints the comparison; 0 when the tracefill run has kept everything."""
    notes = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="tracefill-demo-", ignore_cleanup_errors=True) as scratch:
        folder = Path(keep or scratch).resolve()
        try:
            collector = jaeger.endpoint(jaeger_url) if jaeger_url else None
            with Servers(notes) as servers:
                runs = {mode: run_shop(mode, folder / mode, count, servers, notes) for mode in MODES}
            if collector:
                for mode in MODES:
                    jaeger.send(collector, folder / mode)
        except (CannotStart, jaeger.NoJaeger) as error:
            notes.print(str(error), markup=False)
            return 2
        say_as_json(runs) if as_json else report(runs, folder / "tracefill")
    if collector:
        _say_where(collector, runs, notes)
    return 0 if runs["tracefill"].is_whole else 1


def run_shop(mode: str, folder: Path, count: int, servers: Servers, notes: Console) -> Verdict:
    """One run: the shop up, the traffic sent, everything arrived, the shop down and its spans written; what they say."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in (*folder.glob("*.jsonl"), *folder.glob("shop.sqlite*"), *folder.glob("access.log")):
        old.unlink()
    title, orders = MODES[mode], CALLERS * count
    columns = (TextColumn("{task.description:52}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes) as progress:
        step = progress.add_task(f"{title}: starting the shop", total=2 * orders)
        with Processes(folder) as processes:
            shop = system.start(processes, mode, folder, servers)
            progress.update(step, description=f"{title}: orders")
            for placed in traffic.send(shop, folder, count):
                progress.update(step, completed=placed)
            progress.update(step, description=f"{title}: until all have arrived")
            for found in traffic.arrived(shop, orders):
                progress.update(step, completed=orders + found // len(shop.tables))
            progress.update(step, description=f"{title}: stopping the shop")
        progress.update(step, description=f"{title}: done", completed=2 * orders)
    spans = readers.read([str(path) for path in sorted(folder.glob("*.jsonl"))], processes=1)
    return Verdict(dict(chains.audit(spans, edge_seconds=0)), on_chain(spans, shop.steps), orders * len(shop.steps))


def on_chain(spans: Spans, steps: list[str]) -> int:
    """How many steps of the orders stand in the trace in which the gateway took the order."""
    of_orders, of_steps = set(), set()
    for row in range(len(spans)):
        trace = (int(spans["trace_id_high"][row]), int(spans["trace_id_low"][row]))
        name = spans.text("name", row)
        if spans["kind"][row] == SERVER and spans.text("service", row) == "gateway":
            of_orders.add(trace)
        elif name in steps:
            of_steps.add((trace, name))
    return sum(trace in of_orders for trace, _ in of_steps)


def say_as_json(runs: dict[str, Verdict]) -> None:
    documents = {mode: run.document for mode, run in runs.items()}
    steps = {mode: {"on_chain": run.on_chain, "total": run.steps} for mode, run in runs.items()}
    json.dump({"schema": "tracefill.demo/1", "runs": documents, "steps": steps}, sys.stdout, indent=1)
    print()


def report(runs: dict[str, Verdict], folder: Path) -> None:
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print("\nOne order, by tracefill", style="bold")
    console.print(first_order(folder), "")
    table = Table(title="Chains that are whole", title_justify="left", title_style="bold")
    for head in ("", "whole", "of", "share", "steps on their order's chain", "broken between"):
        table.add_column(head, justify="left" if head in ("", "broken between") else "right")
    for mode, run in runs.items():
        held = run.document["chains"]
        table.add_row(
            MODES[mode],
            str(held["whole"]),
            str(held["total"]),
            percent(held["whole"], held["total"]),
            f"{run.on_chain} of {run.steps}",
            broken_edges(run.document),
        )
    console.print(table)


def _say_where(collector: str, runs: dict[str, Verdict], notes: Console) -> None:
    notes.print("\nThe same from Jaeger:")
    for run in runs.values():
        source = jaeger.audit_source(collector, run.document["window"])
        notes.print(f"  tracefill audit --edge 0 '{source}'", soft_wrap=True, highlight=False, markup=False)


def broken_edges(document: dict[str, Any]) -> str:
    lines = [
        f"{finding['from']} -> {finding['to']}, {finding['via']}: {finding['cause']} ({finding['count']})"
        for finding in sorted(document["findings"], key=lambda finding: -finding["count"])
        if finding["breaks"]
    ]
    return "\n".join(lines) or "-"


def first_order(folder: Path) -> Group:
    """The trace of the first order from outside, what nginx logged of it, and the first run of the job that it scheduled."""
    with (folder / "storefront.jsonl").open(encoding="utf-8") as lines:
        trace_id = next(spans_of(json.loads(next(lines)))).trace_id
    spans = spans_with(trace_id, folder)
    parts: list[Any] = [tree(trace_id, spans)]
    entry = nginx.logged(folder, trace_id)
    if entry:
        parts.append(Text(f"nginx logged by the same id: {entry}"))
    again = [span.trace_id for span in spans if trace_id in span.links]
    if again:
        job = spans_with(again[0], folder)
        parts += [Text("\nEach run of the job that it scheduled is a trace of its own"), tree(again[0], job)]
    return Group(*parts)
