"""gevent, in interpreters of their own: one with its monkey patches, one without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    "first", ["pass", "from gevent import monkey; monkey.patch_all()"], ids=["plain", "monkey-patched"]
)
def test_contracts(first: str) -> None:
    program = f"{first}; import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    contracts = ["-p", "no:cacheprovider", "tests/handoff/gevent_contracts.py"]
    command = [sys.executable, "-W", "ignore", "-c", program, "-q", *contracts]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
