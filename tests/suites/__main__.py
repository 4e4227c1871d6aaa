"""The test suites of OpenTelemetry's own propagators, run with ours in their place: `python -m tests.suites`.

The suites come with the source distributions of the installed versions, which pip fetches once into a cache.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tracefill" / "suites"
TEST_HELPERS = "opentelemetry-test-utils"  # released with the SDK, in the numbering of the contrib packages
SUITES = {
    "opentelemetry-api": [
        "tests/trace/propagation/test_tracecontexthttptextformat.py",
        "tests/propagators/test_w3cbaggagepropagator.py",
        "tests/baggage/propagation/test_propagation.py",
    ],
    "opentelemetry-propagator-b3": ["tests/test_b3_format.py"],
    "opentelemetry-propagator-jaeger": ["tests/test_jaeger_propagator.py"],
    "opentelemetry-propagator-ot-trace": ["tests/test_ot_trace_propagator.py"],
    "opentelemetry-propagator-aws-xray": ["tests/test_aws_xray_propagator.py"],
}


def main() -> int:
    CACHE.mkdir(parents=True, exist_ok=True)
    files = [source(name) / test for name, tests in SUITES.items() for test in tests]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), str(helpers())])}
    options = ["-p", "tests.suites.replaced", "--rootdir", str(CACHE), "-c", os.devnull, "--import-mode=importlib"]
    return subprocess.call(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-rfEx", *options, *map(str, files)], env=environment
    )


def source(name: str) -> Path:
    """The unpacked source distribution of the version that is installed."""
    folder = CACHE / f"{name.replace('-', '_')}-{version(name)}"
    if not folder.exists():
        pip("download", "--no-deps", "--no-binary", name, "--dest", str(CACHE), f"{name}=={version(name)}")
        with tarfile.open(f"{folder}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return folder


def helpers() -> Path:
    release = version("opentelemetry-semantic-conventions")
    folder = CACHE / f"{TEST_HELPERS}-{release}"
    if not folder.exists():
        pip("install", "--no-deps", "--target", str(folder), f"{TEST_HELPERS}=={release}")
    return folder


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
