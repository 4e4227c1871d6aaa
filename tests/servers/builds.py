"""What the servers need that no package manager installs: downloaded or built once into a cache outside of the tree."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.servers import program

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tracefill"


def cached(name: str, *sources: Path) -> Path:
    """Where the build of these sources lies in the cache, there or not: another content is another path."""
    digest = hashlib.sha256(b"\0".join(source.read_bytes() for source in sources))
    return CACHE / f"{name}-{digest.hexdigest()[:12]}"


def not_built(target: Path, how: str = "install") -> str | None:
    """The reason why something cannot run that has not been built, None when it has."""
    return None if target.exists() else f"not built yet: python -m tests.servers {how}"


def build(target: Path, make: Callable[[Path], None]) -> None:
    """Have `make` fill a new folder, then move it to `target` in one step: what is there is whole."""
    if target.exists():
        return
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=CACHE, prefix="unfinished-"))
    try:
        make(folder)
        if not target.exists():  # a run beside this one may have been quicker
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(*command: str | Path, cwd: Path) -> None:
    """Run one step of a build; raises FileNotFoundError without the program, CalledProcessError when it fails."""
    path = program(str(command[0]))
    if path is None:
        raise FileNotFoundError(f"not installed: {command[0]}")
    subprocess.run([path, *command[1:]], cwd=cwd, check=True)


def copy_jars(pom: Path, folder: Path) -> None:
    """Put the jars that a Maven project depends on into the folder."""
    run("mvn", "-B", "-q", "-f", pom, "dependency:copy-dependencies", f"-DoutputDirectory={folder}", cwd=folder)
