"""The command line as a user meets it: in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tracefill.cli import COMMANDS

RUN = "import sys; from tracefill.cli import main; sys.exit(main())"
DEADLINE_S = 120

# A package that is not installed, as far as `import` can tell.
WITHOUT = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "{0}":
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Nowhere())
"""


def tracefill(*arguments: str, first: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a fresh interpreter, after the statement `first`."""
    command = [sys.executable, "-c", f"{first}\n{RUN}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, **options)  # type: ignore[call-overload]


def test_version() -> None:
    done = tracefill("--version")
    assert re.fullmatch(r"tracefill \d+\.\d+\.\d+\S*\n", done.stdout)
    assert done.returncode == 0


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_command_and_an_example(arguments: list[str]) -> None:
    done = tracefill(*arguments)
    assert done.returncode == 0
    assert all(f"    {command} " in done.stdout for command in COMMANDS)
    assert "example:\n  tracefill audit" in done.stdout


def test_unknown_command_is_a_mistake() -> None:
    done = tracefill("adit")
    assert done.returncode == 2
    assert "adit" in done.stderr
    assert "demo, audit, sampling, doctor, bench" in done.stderr.replace("'", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_json_and_an_example(command: str) -> None:
    done = tracefill(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--json" in done.stdout
    assert re.search(rf"^examples?:\n  tracefill {command}", done.stdout, re.MULTILINE)


def test_help_of_one_command_imports_no_other() -> None:
    report = "import atexit, sys; atexit.register(lambda: print(*(m for m in sys.modules if 'tracefill.' in m)))"
    loaded = tracefill("audit", "--help", first=report).stdout.splitlines()[-1].split()
    assert "tracefill.audit.command" in loaded
    assert not {command.module for command in COMMANDS.values()} - {"tracefill.audit.command"} & set(loaded)
    loaded = tracefill("--version", first=report).stdout.splitlines()[-1].split()
    assert not [module for module in loaded if module.startswith(("tracefill.audit", "tracefill.demo"))]


@pytest.mark.parametrize(
    ("command", "package"), [("audit", "rich"), ("audit", "numpy"), ("audit", "msgspec"), ("sampling", "rich")]
)
def test_missing_extra_is_one_line_with_the_command_that_installs_it(command: str, package: str) -> None:
    done = tracefill(command, "x", first=WITHOUT.format(package))
    assert done.returncode == 2
    assert done.stderr == f"tracefill {command} needs {package}: pip install 'tracefill[audit]'\n"
    assert done.stdout == ""


def test_import_that_fails_inside_of_tracefill_is_not_called_a_missing_extra() -> None:
    done = tracefill("audit", "x", first="import sys; sys.modules['tracefill.audit.chains'] = None")
    assert "pip install" not in done.stderr
    assert "Traceback" in done.stderr


def test_interrupt_ends_with_130_and_without_a_traceback() -> None:
    command = [sys.executable, "-c", RUN, "audit", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdin
        running.stdin.write(b'{"resourceSpans":[]}\n' * 100_000)  # more than fits into a pipe: it is being read
        running.stdin.flush()
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        out, errors = running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 130
    assert (out, errors) == (b"", b"")


@pytest.mark.parametrize("after_s", [0, 0.05, 0.3])
def test_interrupt_of_everything_at_the_terminal_ends_the_reading_processes_too(tmp_path: Path, after_s: float) -> None:
    path = tmp_path / "spans.jsonl"
    span = f'{{"traceId":"{1:032x}","spanId":"{1:016x}","name":"a","startTimeUnixNano":"1","endTimeUnixNano":"2"}}'
    path.write_text(f'{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{span}]}}]}}]}}\n' * 1_000_000)
    command = [sys.executable, "-c", RUN, "audit", str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, start_new_session=True, **pipes) as running:
        while not (workers := psutil.Process(running.pid).children()) and running.poll() is None:
            time.sleep(0.01)
        time.sleep(after_s)
        os.killpg(running.pid, signal.SIGINT)
        _, errors = running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 130
    assert b"Traceback" not in errors, errors.decode()
    assert workers
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_reader_that_has_gone_ends_it_without_a_complaint() -> None:
    command, buffered = [sys.executable, "-c", RUN, "--help"], os.environ | {"PYTHONUNBUFFERED": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=buffered) as running:
        assert running.stdout
        running.stdout.close()
        _, errors = running.communicate(timeout=DEADLINE_S)
    assert (running.returncode, errors) == (141, b"")


def test_names_that_the_terminal_cannot_show_do_not_end_the_report(tmp_path: Path) -> None:
    done = tracefill("audit", str(tmp_path / "\N{SNOWMAN}.jsonl"), env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert r"\u2603.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_outside_of_a_checkout_says_what_to_do(tmp_path: Path) -> None:
    elsewhere = "import tracefill.cli; tracefill.cli.__file__ = '/nowhere/src/tracefill/cli.py'"
    done = tracefill("bench", first=elsewhere, cwd=tmp_path)
    assert done.returncode == 2
    assert "make bench" in done.stderr
