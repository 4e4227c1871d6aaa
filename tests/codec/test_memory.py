"""Memory stays flat: looked for in a fresh process, where nothing else allocates."""

from __future__ import annotations

import subprocess
import sys


def test_memory_stays_flat() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.codec.memory", "--count", "300000"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
