"""python -m tests.pythons [--free-threaded] [VERSION ...]: the core's tests on each CPython that is on this machine, each in an environment
of its own. `--free-threaded` first builds a free-threaded 3.13 from Debian's source package into the cache, once.

Looks for python3.10 ... python3.15 (also free-threaded, `python3.13t`) on PATH and under ~/.pyenv/versions; those that are not
here are named and left out.
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15", "3.13t", "3.14t", "3.15t")
NEEDED = ("psutil", "pytest", "pytest-asyncio", "pytest-timeout", "opentelemetry-sdk")
# Newer hypothesis and what configuration files need are Rust, which does not build for a free-threaded 3.13.
WITH_GIL = ("hypothesis", "opentelemetry-configuration")
FREE_THREADED = ("hypothesis<6.131",)
TESTS = (
    "tests/codec",
    "tests/test_snapshots.py",
    "tests/test_ids.py",
    "tests/test_propagators.py",
    "tests/test_sdk_spans.py",
)


def find(version: str) -> str | None:
    """The interpreter of this version, or None."""
    candidates = [shutil.which(f"python{version}")]
    short = version.rstrip("t")
    folders = sorted(Path.home().glob(f".pyenv/versions/{short}.*"), reverse=True)
    candidates += [
        str(f / "bin" / f"python{version}") for f in folders if f.name.endswith("t") == version.endswith("t")
    ]
    candidates.append(str(cache() / version / "bin" / f"python{version}"))
    for candidate in candidates:
        # A pyenv shim stands on PATH for every version, and fails for those that are not selected.
        if candidate and os.path.exists(candidate) and says_version(candidate, short):
            return candidate
    return None


def says_version(python: str, version: str) -> bool:
    done = subprocess.run([python, "--version"], capture_output=True, text=True, check=False)
    return done.returncode == 0 and done.stdout.startswith(f"Python {version}.")


def check(version: str, python: str, folder: Path) -> tuple[str, int, str]:
    """(version, exit code, the end of what was printed)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COVERAGE"))}
    where, tree = folder / version, folder / f"tree-{version}"
    # A tree of its own: two builds at once would share build/.
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv*", "build", "*.so", "*.egg-info", ".*_cache")
    )
    steps = (
        [python, "-m", "venv", str(where)],
        [
            str(where / "bin/python"),
            "-m",
            "pip",
            "install",
            "-q",
            str(tree),
            *NEEDED,
            *(FREE_THREADED if version.endswith("t") else WITH_GIL),
        ],
        [
            str(where / "bin/python"),
            "-P" if not version.startswith("3.10") else "-B",
            "-m",
            "pytest",
            "-q",
            "-x",
            *TESTS,
        ],
    )
    for step in steps:
        done = subprocess.run(step, cwd=tree, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            break
    return version, done.returncode, (done.stdout + done.stderr)[-3000:]


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "tracefill", "pythons")


def build_free_threaded() -> None:
    """CPython 3.13 without the GIL: about ten minutes on two cores. Needs root on Debian; says why when it cannot."""
    if find("3.13t") or os.geteuid() != 0 or not shutil.which("apt-get"):
        return
    print("building a free-threaded CPython 3.13 into the cache, once", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        (where / "lists" / "partial").mkdir(parents=True)
        options = [
            "-o",
            f"Dir::Etc::sourcelist={folder}/sources",
            "-o",
            "Dir::Etc::sourceparts=-",
            "-o",
            f"Dir::State::lists={folder}/lists",
        ]
        (where / "sources").write_text(debian_source("trixie"))
        quiet = {"stdout": subprocess.DEVNULL, "check": True}
        subprocess.run(["apt-get", *options, "update", "-qq"], **quiet)
        subprocess.run(["apt-get", *options, "source", "--download-only", "-qq", "python3.13"], cwd=folder, **quiet)
        (archive,) = where.glob("python3.13_*.orig.tar.?z")
        subprocess.run(["tar", "xf", str(archive)], cwd=folder, check=True)
        (tree,) = (path for path in where.glob("Python-3.13*") if path.is_dir())
        prefix = f"--prefix={cache() / '3.13t'}"
        subprocess.run(["./configure", "--disable-gil", "-q", prefix], cwd=tree, **quiet)
        subprocess.run(["make", "-s", "-j2"], cwd=tree, stderr=subprocess.DEVNULL, **quiet)
        subprocess.run(["make", "-s", "install"], cwd=tree, stderr=subprocess.DEVNULL, **quiet)


def debian_source(release: str) -> str:
    """The deb-src line of a release, from the archive that this machine takes Debian itself from."""
    for path in (Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))):
        text = path.read_text() if path.is_file() else ""
        for found in re.findall(r"(?:^deb(?: \[[^]]*\])? |^URIs: )(\S+)", text, re.MULTILINE):
            if found.rstrip("/").endswith("/debian"):
                return f"deb-src [trusted=yes] {found} {release} main\n"
    raise SystemExit("no apt source names a Debian archive")


def main(arguments: list[str]) -> int:
    if "--free-threaded" in arguments:
        build_free_threaded()
    usual = [version for version in VERSIONS if "--free-threaded" in arguments or not version.endswith("t")]
    wanted = [version for version in VERSIONS if version in arguments] or usual
    found = {version: python for version in wanted if (python := find(version))}
    print(f"not here, hence not tested: {', '.join(v for v in wanted if v not in found) or 'none'}", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(check, version, python, Path(folder)) for version, python in found.items()]
        for run in concurrent.futures.as_completed(runs):
            version, code, output = run.result()
            failed += code != 0
            print(f"CPython {version}: {output.strip().splitlines()[-1] if not code else 'FAILED'}", flush=True)
            if code:
                print(output, flush=True)
    return 1 if failed or not found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
