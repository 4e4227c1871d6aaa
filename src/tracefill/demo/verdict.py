"""What the exported spans of the two runs say: how many chains are whole, where the others broke, and one of them as a tree."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tracefill.audit import chains, readers
from tracefill.audit.document import percent
from tracefill.audit.spans import SERVER, Spans
from tracefill.demo import jaeger, nginx, rabbitmq, system, traffic
from tracefill.demo.processes import CannotStart, Processes, program
from tracefill.demo.tree import spans_of, spans_with, tree

MODES = {"stock": "stock OpenTelemetry + contrib", "tracefill": "tracefill"}
CALLERS = len(traffic.STOREFRONTS) + 1


def compare(count: int, keep: str | None, jaeger_url: str | None, *, as_json: bool) -> int:
    """Runs the shop in both modes and prints the comparison; 0 when every chain of the tracefill run is whole."""
    notes = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="tracefill-demo-", ignore_cleanup_errors=True) as scratch:
        folder = Path(keep or scratch)
        documents: dict[str, dict[str, Any]] = {}
        steps: dict[str, dict[str, int]] = {}
        try:
            collector = jaeger.endpoint(jaeger_url) if jaeger_url else None
            with Servers(notes) as servers:
                for mode in MODES:
                    (folder / mode).mkdir(parents=True, exist_ok=True)
                    done = run_shop(mode, (folder / mode).resolve(), count, servers, notes)
                    spans = readers.read([str(path) for path in sorted((folder / mode).glob("*.jsonl"))], processes=1)
                    documents[mode] = dict(chains.audit(spans, edge_seconds=0))
                    steps[mode] = {"on_chain": on_chain(spans, done), "total": CALLERS * count * len(done)}
                    if collector:
                        jaeger.send(collector, folder / mode)
        except (CannotStart, jaeger.NoJaeger) as error:
            notes.print(str(error), markup=False)
            return 2
        if as_json:
            json.dump({"schema": "tracefill.demo/1", "runs": documents, "steps": steps}, sys.stdout, indent=1)
            print()
        else:
            report(documents, steps, folder / "tracefill")
    if collector:
        _say_where(collector, documents, notes)
    held, own = documents["tracefill"]["chains"], steps["tracefill"]
    return 0 if held["whole"] == held["total"] and own["on_chain"] == own["total"] else 1


class Servers:
    """What both runs share, as far as it is installed; a context manager. What is not is said by name.

    `rabbitmq` is its URL, or None; `nginx` whether there is one.
    """

    def __init__(self, notes: Console) -> None:
        self._notes = notes
        self.rabbitmq: str | None = None
        self.nginx = True

    def __enter__(self) -> Servers:
        self._folder = tempfile.TemporaryDirectory(prefix="tracefill-demo-", ignore_cleanup_errors=True)
        self._processes = Processes(Path(self._folder.name))
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._processes.__exit__(None, None, None)
        self._folder.cleanup()

    def _start(self) -> None:
        try:
            with self._notes.status("starting RabbitMQ"):
                self.rabbitmq = rabbitmq.address(self._processes, Path(self._folder.name))
        except CannotStart as error:
            self._say(f"without RabbitMQ: {error}; TRACEFILL_RABBITMQ=amqp://... names one that runs")
        try:
            program("nginx")
        except CannotStart as error:
            self.nginx = False
            self._say(f"without nginx: {error}; the gateway is called directly")

    def _say(self, text: str) -> None:
        self._notes.print(text, markup=False, highlight=False, soft_wrap=True)


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


def run_shop(mode: str, folder: Path, count: int, servers: Servers, notes: Console) -> list[str]:
    """One run: the shop up, the traffic sent, everything arrived, the shop down and its spans written; the steps of an order."""
    for old in (*folder.glob("*.jsonl"), *folder.glob("shop.sqlite*"), *folder.glob("access.log")):
        old.unlink()
    title, orders = MODES[mode], CALLERS * count
    columns = (TextColumn("{task.description:52}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes) as progress:
        step = progress.add_task(f"{title}: starting the shop", total=2 * orders)
        with Processes(folder) as processes:
            shop = system.start(processes, mode, folder, servers.rabbitmq, servers.nginx)
            progress.update(step, description=f"{title}: orders")
            for placed in traffic.send(shop, folder, count):
                progress.update(step, completed=placed)
            progress.update(step, description=f"{title}: until all have arrived")
            for found in traffic.arrived(shop, orders):
                progress.update(step, completed=orders + found // len(shop.tables))
            progress.update(step, description=f"{title}: stopping the shop")
        progress.update(step, description=f"{title}: done", completed=2 * orders)
    return shop.steps


def report(documents: dict[str, dict[str, Any]], steps: dict[str, dict[str, int]], folder: Path) -> None:
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print("\nOne order, by tracefill", style="bold")
    console.print(first_order(folder))
    table = Table(title="Chains that are whole", title_justify="left", title_style="bold")
    for head in ("", "whole", "of", "share", "steps on their order's chain", "broken between"):
        table.add_column(head, justify="left" if head in ("", "broken between") else "right")
    for mode, title in MODES.items():
        held = documents[mode]["chains"]
        table.add_row(
            title,
            str(held["whole"]),
            str(held["total"]),
            percent(held["whole"], held["total"]),
            f"{steps[mode]['on_chain']} of {steps[mode]['total']}",
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
