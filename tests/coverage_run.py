"""python -m tests.coverage_run: which lines of the core and of the Python around it the core's tests reach.

Builds a slow, traced core in a copy of the tree (the C file has to stand beside the .pyx for coverage to find its lines), runs
the tests of the core there, and fails below the floors.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Of the lines of each, the share that the tests must reach.
FLOORS = {"src/_codec.pyx": 90.0, "src/tracefill/carriers.py": 90.0, "src/tracefill/propagators.py": 95.0}
TESTS = (
    "tests/codec/test_vectors.py",
    "tests/codec/test_w3c.py",
    "tests/codec/test_gate.py",
    "tests/handoff/test_runtime_context.py",
    "tests/test_snapshots.py",
    "tests/test_ids.py",
    "tests/test_propagators.py",
    "tests/test_carriers.py",
    "tests/test_sdk_spans.py",
)
SETTINGS = "[run]\nplugins = Cython.Coverage\nsource = src\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "tree")
        shutil.copytree(
            ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "*.so", "*.egg-info", ".*_cache")
        )
        environment = {
            **os.environ,
            "TRACEFILL_LINETRACE": "1",
            "PYTHONPATH": f"{copy}/src",
            "COVERAGE_CORE": "ctrace",
            "HYPOTHESIS_MAX_EXAMPLES": "20",
        }
        Path(copy, ".coveragerc").write_text(SETTINGS)
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], cwd=copy, env=environment, check=True
        )
        subprocess.run(
            [sys.executable, "-m", "coverage", "run", "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *TESTS],
            cwd=copy, env=environment, check=True,
        )  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "coverage", "json", "-q", "-o", "coverage.json"],
            cwd=copy,
            env=environment,
            check=True,
        )
        files = json.loads(Path(copy, "coverage.json").read_text())["files"]
    failed = 0
    for name, floor in FLOORS.items():
        share = files[name]["summary"]["percent_covered"]
        failed += share < floor
        print(f"{name}: {share:.1f} % of its lines (at least {floor:.0f})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
