"""How far the reading has come: a bar with rate and time left, on standard error, and only where somebody watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tracefill.audit import readers


@contextmanager
def shown(console: Console) -> Iterator[readers.Progress | None]:
    """What to hand to ``readers.read``; None when nobody watches. The bar is gone afterwards.

    >>> from tracefill.audit.readers import read
    >>> with shown(Console(stderr=True)) as progress:
    ...     spans = read([], progress=progress)
    """
    if not console.is_terminal:
        yield None
        return
    columns = (
        TextColumn("reading"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("{task.fields[spans]:,} spans"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, spans=0)
        yield lambda done, total, spans: bar.update(task, completed=done, total=total, spans=spans)
