"""The servers that take part when they are installed; what is not, or does not start, is said by name, and the demo goes on."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from tracefill.demo import nginx, rabbitmq
from tracefill.demo.processes import CannotStart, Processes


class Servers:
    """A context manager, in which both runs share `rabbitmq`, its URL (None: there is none)."""

    def __init__(self, notes: Console) -> None:
        self._notes = notes
        self._has_nginx = True
        self.rabbitmq: str | None = None

    def __enter__(self) -> Servers:
        self._folder = tempfile.TemporaryDirectory(prefix="tracefill-demo-", ignore_cleanup_errors=True)
        self._processes = Processes(Path(self._folder.name))
        try:
            with self._notes.status("starting RabbitMQ"):
                self.rabbitmq = rabbitmq.address(self._processes, Path(self._folder.name))
        except CannotStart as error:
            self._say(f"without RabbitMQ: {error}; {rabbitmq.VARIABLE}=amqp://... names one that runs")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._processes.__exit__(None, None, None)
        self._folder.cleanup()

    def entrance(self, processes: Processes, folder: Path, gateway: str) -> str:
        """The address, `host:port`, of an nginx before the gateway; without nginx that of the gateway."""
        if self._has_nginx:
            try:
                return nginx.start(processes, folder, gateway)
            except CannotStart as error:
                self._has_nginx = False
                self._say(f"without nginx: {error}; the gateway is called directly")
        return gateway

    def _say(self, text: str) -> None:
        self._notes.print(text, markup=False, highlight=False, soft_wrap=True)
