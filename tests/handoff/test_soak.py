"""A few seconds of the soak that `make soak` runs for minutes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_mixed_handoffs_with_failures_and_cancellations() -> None:
    command = [sys.executable, "-m", "tests.handoff.soak", "--threads", "4", "--seconds", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "below its own parent" in done.stdout
