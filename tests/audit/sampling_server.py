"""A Jaeger of our own that reads its strategies again every few milliseconds, and is asked what it tells a service."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import grpc

from tests.servers import NotHere, free_port, jaeger, started

RELOAD_MS = 10
DEADLINE_S = 30


class StrategyServer(jaeger.Jaeger):
    """Jaeger with its quickest reload, another default probability where one is given, and a gRPC port we know."""

    def __init__(self, folder: Path, default_probability: float | None = None) -> None:
        super().__init__(folder)
        self.default_probability = default_probability
        self.grpc_port = free_port()
        self._loads = 0

    def load(self, strategies: bytes) -> None:
        """Have Jaeger read a file, and wait until it has; raises TimeoutError when it does not."""
        self._loads += 1
        marker = f"loaded-{self._loads}"
        self._replace(_with_service(strategies, marker))
        deadline = time.monotonic() + DEADLINE_S
        while (self.answer(marker) or {}).get("probabilisticSampling") != {"samplingRate": 0.75}:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Jaeger did not take {strategies!r}")
            time.sleep(RELOAD_MS / 5000)

    def offer(self, strategies: bytes) -> None:
        """Put a file before Jaeger that it may refuse, and leave it time for several looks at it."""
        self._replace(strategies)
        time.sleep(RELOAD_MS * 8 / 1000)

    def answer(self, service: str, path: str = "/sampling") -> Any:
        """The page for a service; None where Jaeger answers with an error."""
        base = self.sampling.removesuffix("/sampling")
        try:
            with urllib.request.urlopen(f"{base}{path}?{urlencode({'service': service})}", timeout=DEADLINE_S) as page:
                return json.load(page)
        except urllib.error.HTTPError as error:
            if error.code != 500:
                raise
            return None

    def answer_by_grpc(self, service: str) -> bytes:
        """The answer as protobuf."""
        name = service.encode()
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc_port}") as channel:
            ask = channel.unary_unary("/jaeger.api_v2.SamplingManager/GetSamplingStrategy")
            return bytes(ask(b"\n" + bytes([len(name)]) + name, timeout=DEADLINE_S, wait_for_ready=True))

    def has_ended(self) -> bool:
        """Whether the process has gone by itself, waiting a while for it."""
        return any(process.wait(DEADLINE_S) for process in self._processes)

    def _replace(self, strategies: bytes) -> None:
        new = self.strategies.with_suffix(".new")
        new.write_bytes(strategies)
        new.rename(self.strategies)  # never half of it

    def _configuration(self) -> dict[str, Any]:
        configuration: dict[str, Any] = super()._configuration()
        remote = configuration["extensions"]["remote_sampling"]
        remote["file"]["reload_interval"] = f"{RELOAD_MS}ms"
        remote["grpc"] = {"endpoint": f"127.0.0.1:{self.grpc_port}"}
        if self.default_probability is not None:
            remote["file"]["default_sampling_probability"] = self.default_probability
        return configuration


def _with_service(strategies: bytes, name: str) -> bytes:
    """The same JSON text with one more service; another `service_strategies` would be written into the first."""
    marker = b'{"service":"%s","type":"probabilistic","param":0.75}' % name.encode()
    assert strategies.rstrip().endswith(b"]}"), "ends with the list of services"
    body = strategies.rstrip()[:-2]
    return body + (b"" if body.rstrip().endswith(b"[") else b",") + marker + b"]}"


@contextlib.contextmanager
def running(default_probability: float | None = None) -> Iterator[StrategyServer]:
    """A running server, stopped and cleared away at the end; the test is skipped where Jaeger has not been built."""
    if reason := jaeger.available():
        raise NotHere(reason)
    with tempfile.TemporaryDirectory(prefix="tracefill-sampling-", ignore_cleanup_errors=True) as folder:
        server = started(StrategyServer(Path(folder), default_probability))
        try:
            yield server
        finally:
            server.stop()
