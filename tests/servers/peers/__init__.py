"""Programs in other languages that take part in a test: they read and write the headers with their own libraries."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DEADLINE_S = 120


class Peer:
    """A program that is started anew for each of its three verbs; `headers` are the position it starts from.

    `format` says how it writes that position: "tracecontext", "b3" or "b3multi".
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._command = command

    def produce(self, broker: str, topic: str, headers: dict[str, str], format: str = "tracecontext") -> None:
        """Send one record to the topic."""
        self._run("produce", broker, topic, format, json.dumps(headers))

    def consume(self, broker: str, topic: str, count: int) -> list[dict[str, Any]]:
        """The first records of the topic: `value`, `headers` (pairs), and what `tracecontext` and `b3` read from them.

        That is None, or `trace_id`, `span_id`, `sampled` and `b3` (the header it would send on). The peer in Go has
        `trace_state` there too, and the `baggage` of the record.
        """
        return self._run("consume", broker, topic, str(count))

    def get(self, url: str, headers: dict[str, str], format: str = "tracecontext") -> dict[str, Any]:
        """The `status` and `body` that come back for an HTTP request."""
        [answer] = self._run("get", url, format, json.dumps(headers))
        return answer

    def stop(self) -> None:
        """Nothing: each verb has ended when it returns."""

    def _run(self, *arguments: str) -> list[dict[str, Any]]:
        ran = subprocess.run(
            [*self._command, *arguments], capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        if ran.returncode != 0:
            raise RuntimeError(f"the peer failed: {arguments}\n{ran.stderr}")
        return [json.loads(line) for line in ran.stdout.splitlines()]
