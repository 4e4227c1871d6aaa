"""Without the compiled part the import says what happened, why, and the command to run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import tracefill


def test_the_import_names_the_cure(tmp_path: Path) -> None:
    copy = tmp_path / "tracefill"
    shutil.copytree(
        Path(tracefill.__file__).parent, copy, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__")
    )
    done = subprocess.run([sys.executable, "-c", "import tracefill"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "compiled core (tracefill._codec) is missing" in done.stderr
    assert "pip install" in done.stderr
