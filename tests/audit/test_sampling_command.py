"""The command: its exit codes, its document, and a report that can be read at 80 columns."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.audit import sampling_server
from tests.audit.test_sampling_seen import Shop
from tracefill.audit.sampling.finding import CAUSES
from tracefill.audit.sampling.strategies import effective, read
from tracefill.cli import main

CLEAN = {"default_strategy": {"type": "probabilistic", "param": 0.5}}
FAULTY = {
    "default_strategy": {"type": "probabilistic", "param": 0.5},
    "service_strategies": [
        {"service": "orders", "type": "ratelimiting", "param": 0.9},
        {"service": "[bold]web[/bold]\x1b[2J", "type": "probability", "param": 0.25},
        {"service": "a-service-with-a-name-that-is-longer-than-the-line-" * 3, "type": "probabilistic", "param": 50},
    ],
}


Printed = pytest.CaptureFixture[str]


@pytest.fixture
def strategies(tmp_path: Path) -> Path:
    return write(tmp_path, FAULTY)


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def write(folder: Path, document: Any) -> Path:
    path = folder / "strategies.json"
    path.write_text(json.dumps(document))
    return path


def run(*arguments: object) -> int:
    return main(["sampling", *map(str, arguments)])


def document(capsys: Printed, *arguments: object) -> dict[str, Any]:
    run(*arguments, "--json")
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def test_no_conflict_is_exit_code_0(tmp_path: Path, capsys: Printed) -> None:
    assert run(write(tmp_path, CLEAN)) == 0
    assert "no conflicts, no notes" in capsys.readouterr().out


def test_conflicts_are_exit_code_1(strategies: Path, capsys: Printed) -> None:
    assert run(strategies) == 1
    printed = capsys.readouterr().out
    assert "3 conflicts" in printed
    assert "Jaeger makes 0 of 0.9 traces a second: nothing is recorded" in printed
    assert '"type": "ratelimiting", "param": 1\n' in printed


def test_notes_alone_are_exit_code_0(tmp_path: Path) -> None:
    assert run(write(tmp_path, {})) == 0


UNREADABLE: dict[str, tuple[list[str], str]] = {
    "no_file": (["nowhere.json"], "No such file"),
    "a_folder": (["."], "directory"),
    "no_json": (["{broken}"], "Jaeger would not take this file: not JSON"),
    "agent_without_a_type": (["{clean}", "--agent", "orders"], "expected SERVICE=TYPE[:PARAM], found 'orders'"),
    "call_without_a_callee": (["{clean}", "--call", "web="], "expected FROM=TO, found 'web='"),
    "no_agents_file": (["{clean}", "--agents", "nowhere.txt"], "nowhere.txt"),
    "no_spans": (["{clean}", "--spans", "nowhere.jsonl"], "nowhere.jsonl"),
    "no_spans_in_it": (["{clean}", "--spans", "{empty}"], "no spans"),
    "no_server": (["{clean}", "--url", "http://127.0.0.1:1"], "not a sampling server"),
    "no_url": (["{clean}", "--url", "collector"], "expected http://HOST:PORT"),
    "no_place_for_the_fix": (["{clean}", "--fix", "nowhere/fixed.json"], "nowhere/fixed.json"),
}


@pytest.mark.parametrize(("arguments", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_exit_code_2(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: Printed,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text('{"default_strategy": ')
    Path("empty.jsonl").touch()
    write(tmp_path, CLEAN)
    paths = {"clean": "strategies.json", "broken": "broken.json", "empty": "empty.jsonl"}
    assert run(*(argument.format(**paths) for argument in arguments)) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.out == ""


@pytest.mark.parametrize("probability", ["-0.1", "1.1", "x", "nan"])
def test_a_default_probability_is_between_0_and_1(probability: str, strategies: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(strategies, "--default-probability", probability)
    assert ended.value.code == 2


def test_lines_fit_into_80_columns_and_names_stay_text(strategies: Path, capsys: Printed) -> None:
    run(strategies, "--agent", "orders=traceidratio:0.1", "--call", "orders=mailer", "--agent", "mailer=always_on")
    printed = capsys.readouterr().out
    too_long = [line for line in printed.splitlines() if len(line) > 80]
    assert all(re.match(r'    ("|OTEL_)', line) for line in too_long), "only a line to copy may be longer"
    assert "\x1b" not in printed
    assert "[bold]web[/bold]\\x1b[2J" in printed
    assert not [line for line in printed.splitlines() if line.endswith("  ") and "│" in line]


def test_the_document_says_what_jaeger_serves(strategies: Path, capsys: Printed) -> None:
    told = document(capsys, strategies, "--agent", "mailer=remote")
    assert told["schema"] == "tracefill.sampling/1"
    assert told["input"] == {
        "strategies": str(strategies),
        "default_sampling_probability": 0.001,
        "url": None,
        "spans": None,
        "calls_known": False,
    }
    assert told["served"]["services"] == {
        name: effective(read(strategies), name) for name in told["served"]["services"]
    }
    assert {"orders", "mailer"} < told["served"]["services"].keys()
    assert told["served"]["others"] == {"strategyType": 0, "probabilisticSampling": {"samplingRate": 0.5}}


def test_the_document_has_the_documented_fields_and_no_others(strategies: Path, capsys: Printed) -> None:
    told = document(capsys, strategies, "--agent", "orders=traceidratio:0.1", "--call", "web=orders")
    fields = "schema input served services calls chains findings conflicts corrected"
    assert list(told) == fields.split()
    assert told["conflicts"] == sum(finding["conflict"] for finding in told["findings"])
    fields = "cause conflict what service operation from rule share_dropped evidence cure"
    assert {tuple(finding) for finding in told["findings"]} == {tuple(fields.split())}
    assert told["calls"] == [{"from": "web", "to": "orders"}]
    assert told["chains"] == [
        {"from": "web", "operation": None, "services": ["orders", "web"], "recorded": 0.5, "whole": 0.1}
    ]
    (orders,) = [service for service in told["services"] if service["service"] == "orders"]
    assert orders == {
        "service": "orders",
        "sampler": "traceidratio:0.1",
        "given": True,
        "parent_based": False,
        "rules": [{"operation": None, "rate": 0.1}],
    }


def test_the_default_probability_can_be_told(tmp_path: Path, capsys: Printed) -> None:
    path = write(tmp_path, {"service_strategies": [{"service": "a"}]})
    assert document(capsys, path)["served"]["services"]["a"]["probabilisticSampling"]["samplingRate"] == 0.001
    told = document(capsys, path, "--default-probability", "1")
    assert told["served"]["services"]["a"]["probabilisticSampling"]["samplingRate"] == 1


def test_the_fix_is_a_file_without_conflicts(strategies: Path, tmp_path: Path, capsys: Printed) -> None:
    fixed = tmp_path / "fixed.json"
    assert run(strategies, "--fix", fixed) == 1
    assert str(fixed) in capsys.readouterr().out.replace("\n", "")
    assert run(fixed) == 0
    capsys.readouterr()
    assert json.loads(fixed.read_text()) == document(capsys, strategies)["corrected"]


def test_agents_come_from_a_file_too_and_the_command_line_wins(tmp_path: Path, capsys: Printed) -> None:
    (tmp_path / "agents.txt").write_text(
        "# samplers\nweb=parentbased_traceidratio:0.1  # the edge\n\norders=always_on\n"
    )
    told = document(
        capsys, write(tmp_path, CLEAN), "--agents", tmp_path / "agents.txt", "--agent", "orders=parentbased_always_on"
    )
    settings = {service["service"]: service["sampler"] for service in told["services"] if service["given"]}
    assert settings == {"web": "parentbased_traceidratio:0.1", "orders": "parentbased_always_on"}


def test_every_cause_that_is_printed_is_documented(strategies: Path, capsys: Printed) -> None:
    assert {finding["cause"] for finding in document(capsys, strategies)["findings"]} <= CAUSES.keys()


def test_the_examples_of_the_help_run(tmp_path: Path, capsys: Printed, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if len(line) > 80] == []
    first, second, third = _examples(text)
    write(tmp_path, FAULTY)
    shop = Shop(tmp_path / "spans.jsonl", {"web": "always_on"})
    shop.request("web")
    shop.seen()
    monkeypatch.chdir(tmp_path)
    assert main(first) == 1
    assert main(second) == 1
    assert json.loads(Path("corrected.json").read_text())["default_strategy"] == CLEAN["default_strategy"]
    with sampling_server.running() as server:
        url = server.sampling.removesuffix("/sampling")
        assert main([argument.replace("http://collector:5778", url) for argument in third]) == 1
    assert "server differs" in capsys.readouterr().out


def _examples(text: str) -> list[list[str]]:
    _, _, after = text.partition("examples:\n")
    lines = after.partition("\n\n")[0].replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines]
