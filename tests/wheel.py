"""python -m tests.wheel: the sdist, the wheel built from that sdist, and an install of that wheel, as users get them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_SDIST = ("src/_codec.pyx", "src/_hex.h", "src/_cpython.h", "setup.py", "tests/codec/vectors/b3.json", "LICENSE")
IN_WHEEL = ("tracefill/py.typed", "tracefill/_codec.pyi", "tracefill/audit/report.html")
USE = """
import tracefill, sys
from importlib.metadata import entry_points
from tracefill.formats import FORMATS
assert "site-packages" in tracefill.__file__, tracefill.__file__
header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
assert FORMATS["tracecontext"].encode(FORMATS["tracecontext"].decode(header))[0] == header
for group in ("opentelemetry_propagator", "opentelemetry_context"):
    assert [row.load() for row in entry_points(group=group) if row.value.startswith("tracefill")], group
tracefill.install(); assert "threads" in tracefill.installed(), tracefill.installed(); tracefill.uninstall()
assert "opentelemetry.sdk" not in sys.modules
print("the installed wheel works with opentelemetry-api alone:", tracefill.__version__)
"""


def run(*command: str, **keywords: object) -> None:
    subprocess.run(command, check=True, **keywords)  # type: ignore[call-overload]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, str(ROOT), stdout=subprocess.DEVNULL)
        (sdist,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        absent = [name for name in IN_SDIST if name not in names]
        assert not absent, f"the sdist lacks {absent}"
        assert not [name for name in names if name.endswith((".c", ".so"))], "the sdist holds build products"
        run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, str(sdist))
        (wheel,) = Path(folder).glob("*.whl")
        inside = zipfile.ZipFile(wheel).namelist()
        absent = [name for name in IN_WHEEL if name not in inside]
        assert not absent, f"the wheel lacks {absent}"
        assert any(name.startswith("tracefill/_codec.") and name.endswith((".so", ".pyd")) for name in inside)
        assert not [name for name in inside if name.startswith(("tests", "benchmarks"))], "the wheel holds the tests"
        run(sys.executable, "-m", "venv", f"{folder}/venv")
        run(f"{folder}/venv/bin/python", "-m", "pip", "install", "-q", str(wheel))
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        run(f"{folder}/venv/bin/python", "-c", USE, cwd=folder, env=clean)
        print(f"{sdist.name}, {wheel.name}: built, installed and used")
    return 0


if __name__ == "__main__":
    sys.exit(main())
