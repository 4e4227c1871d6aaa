"""``tracefill sampling`` on a terminal: what drops spans in silence first, then what Jaeger serves to whom.

Colour says nothing that the words do not say, lines fit into 80 columns, and a cure's line of configuration is never
wrapped, so that it can be copied.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tracefill.audit.document import plain
from tracefill.audit.sampling.finding import Finding, percent

SERVICES_SHOWN = 30
CHAINS_SHOWN = 10
OPERATIONS_SHOWN = 3


def render(document: dict[str, Any], findings: Iterable[Finding], console: Console) -> None:
    """Prints the whole report; the headline comes first and stands alone."""
    findings = list(findings)
    console.print(Text(plain(headline(document)), style="bold red" if document["conflicts"] else "bold green"))
    for finding in sorted(findings, key=lambda finding: (not finding.conflict, -(finding.share_dropped or 0))):
        _print_finding(finding, console)
    _print_served(document, console)
    _print_chains(document, console)


def headline(document: dict[str, Any]) -> str:
    """The one line that matters.

    >>> headline({"conflicts": 1, "findings": [{}, {}], "input": {"strategies": "strategies.json"}})
    '1 conflict, 1 note in strategies.json'
    """
    conflicts = document["conflicts"]
    counts = [_counted(conflicts, "conflict"), _counted(len(document["findings"]) - conflicts, "note")]
    return f"{', '.join(counts)} in {document['input']['strategies']}"


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"


def _print_finding(finding: Finding, console: Console) -> None:
    console.print()
    title = Text(finding.cause.replace("_", " "), style="bold red" if finding.conflict else "bold yellow")
    title.append("" if finding.conflict else " (note)", style="")
    title.append(plain(_where(finding)), style="")
    console.print(title)
    lines = [Text(plain(finding.what))]
    if finding.share_dropped:
        lines.append(Text(f"dropped in silence: {percent(finding.share_dropped)}", style="red"))
    if finding.rule:
        lines.append(Text(plain(f"rule: {finding.rule}"), style="dim"))
    lines.append(Text(plain(f"cure: {finding.cure}"), style="green"))
    for line in lines:
        console.print(Padding(line, (0, 0, 0, 2), expand=False))
    if finding.config:
        console.print(Text(f"    {plain(finding.config)}"), soft_wrap=True)


def _where(finding: Finding) -> str:
    service = finding.service or ""
    route = f"{finding.caller} → {service}" if finding.caller else service
    operation = f" {finding.operation!r}" if finding.operation is not None else ""
    return f"  {route}{operation}" if route or operation else ""


def _print_served(document: dict[str, Any], console: Console) -> None:
    served = document["served"]
    settings = {entry["service"]: entry["sampler"] for entry in document["services"] if entry["given"]}
    table = _table("service", "is told", "decides by")
    pages = [*served["services"].items()]
    for name, page in pages[:SERVICES_SHOWN]:
        table.add_row(*(Text(plain(text)) for text in (name or "''", in_words(page), settings.get(name, ""))))
    if len(pages) > SERVICES_SHOWN:
        table.add_row(f"... {len(pages) - SERVICES_SHOWN} more: --json", "", "")
    table.add_row("(any other)", Text(plain(in_words(served["others"]))), "")
    console.print("\nWhat Jaeger tells the services")
    console.print(table)


def in_words(page: dict[str, Any] | None) -> str:
    """A page as one says it: the operations first, as clients look at them first.

    >>> in_words({"strategyType": 1, "rateLimitingSampling": {"maxTracesPerSecond": 2}})
    '2 a second'
    """
    if page is None:
        return "nothing: the server has an error"
    if "operationSampling" not in page:
        if "rateLimitingSampling" in page:
            return f"{page['rateLimitingSampling']['maxTracesPerSecond']} a second"
        return _rate(page["probabilisticSampling"]["samplingRate"])
    operations = page["operationSampling"]
    rates = {
        rate["operation"]: rate["probabilisticSampling"]["samplingRate"]
        for rate in operations["perOperationStrategies"]
    }
    shown = [f"{name} {_rate(rate)}" for name, rate in list(rates.items())[:OPERATIONS_SHOWN]]
    more = [f"{len(rates) - OPERATIONS_SHOWN} more"] if len(rates) > OPERATIONS_SHOWN else []
    return ", ".join([*shown, *more, f"others {_rate(operations['defaultSamplingProbability'])}"])


def _rate(rate: float) -> str:
    return percent(rate) if 0 <= rate <= 1 else f"{rate:g} (no probability)"


def _print_chains(document: dict[str, Any], console: Console) -> None:
    chains = [chain for chain in document["chains"] if len(chain["services"]) > 1]
    if not chains:
        return
    table = _table("at", "recorded there", "whole", "with")
    for chain in sorted(chains, key=lambda chain: (chain["whole"] is None, chain["whole"]))[:CHAINS_SHOWN]:
        name = chain["from"] if chain["operation"] is None else f"{chain['from']} {chain['operation']}"
        others = [service for service in chain["services"] if service != chain["from"]]
        shares = [("by traffic" if chain[key] is None else percent(chain[key])) for key in ("recorded", "whole")]
        table.add_row(Text(plain(name)), *shares, Text(plain(", ".join(others))))
    console.print("\nOf the traces that begin")
    console.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
