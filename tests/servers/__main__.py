"""Prepare the servers of the tests: `python -m tests.servers install | jaeger | check`.

install  get what is missing: packages by apt (as root on Debian), jars by Maven, the peers; says what it does
jaeger   build Jaeger, once: minutes of all cores
check    one line a server; exit code 1 when one of them is missing
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.servers import NAMES, available, given, module, program

# What each program comes with on Debian. Some are no servers, but tools that tests and benchmarks start.
PACKAGES = {
    "rabbitmq-server": "rabbitmq-server",
    "postgres": "postgresql",
    "mariadbd": "mariadb-server",
    "redis-server": "redis-server",
    "nginx": "nginx-light",
    "java": "openjdk-17-jre-headless",
    "javac": "openjdk-17-jdk-headless",
    "mvn": "maven",
    "wrk": "wrk",
    "chromium": "chromium",
    "valgrind": "valgrind",
}
TOOLS = ("wrk", "chromium", "valgrind")
APT_GET = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-q"]

# What Debian's packages ask before they start a service; 101 says no.
POLICY = Path("/usr/sbin/policy-rc.d")
START_NOTHING = "#!/bin/sh\nexit 101\n"


def install() -> int:
    """Get what is missing and can be got here; always 0, because the tests name what they leave out themselves."""
    packages = sorted({package for name, package in PACKAGES.items() if program(name) is None})
    if packages and os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing by apt: {' '.join(packages)}")
        _install_packages(packages)
    elif packages:
        say(f"please install: {' '.join(packages)} (the names of Debian's packages)")
    for name in NAMES:
        if name != "jaeger":
            _build(name)
    if reason := available("jaeger"):
        say(f"jaeger: {reason}")
    return 0


def jaeger() -> int:
    return 0 if _build("jaeger") else 1


def check() -> int:
    reasons = {name: available(name) for name in NAMES}
    reasons |= {name: None if program(name) else "not installed" for name in TOOLS}
    for name, reason in reasons.items():
        say(f"{name}: {reason or given_or_here(name)}")
    return 1 if any(reasons.values()) else 0


def given_or_here(name: str) -> str:
    return (name in NAMES and given(name)) or "ok"


def _install_packages(packages: list[str]) -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    with no_services_started():
        for step in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            if subprocess.run([*APT_GET, *step], env=environment, check=False).returncode != 0:
                say(f"apt-get {step[0]} failed: see above")


@contextlib.contextmanager
def no_services_started() -> Iterator[None]:
    aside = POLICY.with_name(f"{POLICY.name}.tracefill")
    if os.path.lexists(POLICY):
        POLICY.rename(aside)
    try:
        POLICY.write_text(START_NOTHING)
        POLICY.chmod(0o755)
        yield
    finally:
        POLICY.unlink(missing_ok=True)
        if os.path.lexists(aside):
            aside.rename(POLICY)


def _build(name: str) -> bool:
    """Build what the server needs, where it is to be built and has not been; false when that failed."""
    if available(name) is None or not hasattr(module(name), "build"):
        return True
    say(f"building {name}")
    try:
        module(name).build()
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        say(f"{name} was not built: {error}")
        return False
    return True


def say(line: str) -> None:
    print(line, flush=True)


COMMANDS: dict[str, Callable[[], int]] = {"install": install, "jaeger": jaeger, "check": check}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    sys.exit(COMMANDS[sys.argv[1]]())
