"""Jaeger with a store in memory, built from its Go module: takes OTLP, gives traces and sampling strategies."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.servers import Server, ask, builds, free_port, started

VARIABLE = "TRACEFILL_JAEGER"
SCHEME = "http"

PACKAGE = "github.com/jaegertracing/jaeger/cmd/jaeger"
FOLDER = Path(__file__).parent
BUILT = builds.cached("jaeger", FOLDER / "go.mod", FOLDER / "go.sum")

SAMPLE_ALL = {"default_strategy": {"type": "probabilistic", "param": 1}}


class Jaeger(Server):
    """`url` is the query API, `otlp` the OTLP receiver, `sampling` the strategies as the services are told them.

    `strategies` is the file that the strategies come from; Jaeger reads it again within a second.
    """

    name = "jaeger"
    url_format = "http://127.0.0.1:{port}"

    def __init__(self, folder: Path | None, url: str | None = None) -> None:
        super().__init__(folder, url)
        otlp_port, sampling_port = (free_port(), free_port()) if self.ours else (4318, 5778)
        self.otlp = f"http://{self.host}:{otlp_port}/v1/traces"
        self.sampling = f"http://{self.host}:{sampling_port}/sampling"
        self.strategies = self.folder / "strategies.json"
        self._ports = [self.port, otlp_port, sampling_port]

    def prepare(self) -> None:
        self.strategies.write_text(json.dumps(SAMPLE_ALL))
        (self.folder / "config.yaml").write_text(json.dumps(self._configuration()))  # JSON is YAML too

    def command(self) -> list[str | Path]:
        return [BUILT / "jaeger", "--config", self.folder / "config.yaml"]

    def environment(self) -> dict[str, str]:
        return {"OTEL_TRACES_SAMPLER": "always_off"}  # of itself: it would wait for a collector to take its own spans

    def answers(self) -> bool:
        return all(ask(port, b"GET / HTTP/1.0\r\n\r\n") for port in self._ports)

    def trace(self, trace_id: str) -> Any:
        """A stored trace in Jaeger's JSON; None when there is none of this id (32 hex digits)."""
        try:
            with urllib.request.urlopen(f"{self.url}/api/traces/{trace_id}") as response:
                return json.load(response)["data"][0]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def _configuration(self) -> dict[str, object]:
        query, otlp, sampling = ({"endpoint": f"127.0.0.1:{port}"} for port in self._ports)
        unused = [{"endpoint": f"127.0.0.1:{free_port()}"} for _ in range(2)]
        strategies = {"path": str(self.strategies), "reload_interval": "500ms"}
        return {
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query", "remote_sampling"],
                "pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}},
                "telemetry": {"logs": {"level": "error"}, "metrics": {"level": "none"}},
            },
            "extensions": {
                "jaeger_storage": {"backends": {"store": {"memory": {"max_traces": 200_000}}}},
                "jaeger_query": {"storage": {"traces": "store"}, "http": query, "grpc": unused[0]},
                "remote_sampling": {"file": strategies, "http": sampling, "grpc": unused[1]},
            },
            "receivers": {"otlp": {"protocols": {"http": otlp}}},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "store"}},
        }


SERVER = Jaeger


def available() -> str | None:
    return builds.not_built(BUILT, "jaeger")


def build() -> None:
    """Build the server: minutes of all cores, the first time; without optimising, which would double them."""
    options = ["-trimpath", "-gcflags=all=-N -l -dwarf=false", "-ldflags=-s -w"]
    builds.build(BUILT, lambda folder: builds.run("go", "build", *options, "-o", folder, PACKAGE, cwd=FOLDER))


def start(folder: Path) -> Jaeger:
    return started(Jaeger(folder))
