"""python -m tests.data.sqlalchemy_versions [VERSION ...]: the tests of SQLAlchemy's integration under other versions of it.

Each version (default: 1.4 and 2.0, in their newest releases) goes into an environment of its own, in a temporary folder, that finds
everything else in this one. Exit code 1 when a test fails in one of them.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ("1.4", "2.0")


def main(versions: list[str]) -> int:
    failed = [version for version in versions or DEFAULT if not passes(version)]
    print(f"failed with SQLAlchemy {', '.join(failed)}" if failed else "all passed")
    return 1 if failed else 0


def passes(version: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        python = environment(Path(folder), version)
        shown = subprocess.check_output([python, "-c", "import sqlalchemy; print(sqlalchemy.__version__)"], text=True)
        if not shown.startswith(version):
            sys.exit(f"SQLAlchemy {version} was asked for, {shown.strip()} is what the tests would meet")
        print(f"SQLAlchemy {shown.strip()}", flush=True)
        tests = ["tests/data/test_sqlalchemy.py", "-q", "-p", "no:cacheprovider"]
        return subprocess.run([python, "-m", "pytest", *tests], cwd=ROOT, check=False).returncode == 0


def environment(folder: Path, version: str) -> str:
    """The Python of an environment whose SQLAlchemy stands before this environment's."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin/python")
    subprocess.run([python, "-m", "pip", "install", "-q", f"sqlalchemy=={version}.*"], check=True)
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.check_output(asked, text=True).strip()
    # addsitedir appends: what is installed in the environment itself is found first.
    here = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
    Path(packages, "the_rest.pth").write_text(here)
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
