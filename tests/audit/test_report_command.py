"""`tracefill audit`, from the command line to its exit code."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.audit import browser
from tracefill.cli import main

SECOND = 10**9
BEGIN = 1_767_225_600 * SECOND
CALL, SERVE = 3, 2  # SPAN_KIND_CLIENT, SPAN_KIND_SERVER
Captured = pytest.CaptureFixture[str]


def write_spans(path: Path, *, whole: int, broken: int) -> Path:
    """A minute's worth of chains: web calls orders; in the broken ones the parent of the call is missing."""
    path.write_text("".join(_chain(number, is_whole=number >= broken) for number in range(whole + broken)))
    return path


def _chain(number: int, *, is_whole: bool) -> str:
    trace, start = f"{number + 1:032x}", BEGIN + number * SECOND
    spans = [
        _span(trace, 2, 1, "GET", CALL, start + 1000, SECOND // 4),
        _span(trace, 3, 2, "GET /orders", SERVE, start + 2000, SECOND // 5),
    ]
    front = [_span(trace, 1, 0, "GET /", SERVE, start, SECOND // 2)] if is_whole else []
    return _line("web", [*front, spans[0]]) + _line("orders", [spans[1]])


def _span(trace: str, span: int, parent: int, name: str, kind: int, start: int, length: int) -> dict[str, Any]:
    above = {"parentSpanId": f"{parent:016x}"} if parent else {}
    times = {"startTimeUnixNano": str(start), "endTimeUnixNano": str(start + length)}
    return {"traceId": trace, "spanId": f"{span:016x}", "name": name, "kind": kind} | above | times


def _line(service: str, spans: list[dict[str, Any]]) -> str:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    scoped = [{"scope": {"name": "shop"}, "spans": spans}]
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": scoped}]}) + "\n"


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    return write_spans(tmp_path / "broken.jsonl", whole=150, broken=50)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_spans(tmp_path / "whole.jsonl", whole=200, broken=0)


def audit(*arguments: object) -> int:
    return main(["audit", *map(str, arguments)])


def test_report_begins_with_the_headline(broken: Path, capsys: Captured) -> None:
    assert audit(broken, "--edge", 0) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0] == "150 of 200 chains whole (75.0 %)"
    assert printed.err == ""


def test_json_is_the_document(broken: Path, capsys: Captured) -> None:
    assert audit("--json", "--edge", 0, broken) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "tracefill.audit/1"
    assert document["sources"] == [str(broken)]
    assert (document["chains"]["whole"], document["chains"]["total"]) == (150, 200)
    assert [len(finding["examples"]) for finding in document["findings"]] == [3]


@pytest.mark.parametrize(("asked", "given"), [("all", 50), (7, 7), (0, 0)])
def test_examples_are_as_many_as_asked_for(broken: Path, capsys: Captured, asked: object, given: int) -> None:
    audit(broken, "--json", "--edge", 0, "--examples", asked)
    document = json.loads(capsys.readouterr().out)
    assert [len(finding["examples"]) for finding in document["findings"]] == [given]


def test_edge_is_handed_on(broken: Path, capsys: Captured) -> None:
    audit(broken, "--json", "--edge", 10)
    window = json.loads(capsys.readouterr().out)["window"]
    assert (window["edge_seconds"], window["left_out"]) == (10, 10)


def test_strangers_operations_are_handed_on(tmp_path: Path, capsys: Captured) -> None:
    lines = [_chain(number, is_whole=True) for number in range(50)]
    lost = [
        _line("orders", [_span(f"{n:032x}", 3, 2, "GET /orders", SERVE, BEGIN + n * SECOND // 4, 9)])
        for n in range(100, 140)
    ]
    (tmp_path / "spans.jsonl").write_text("".join(lines + lost))
    audit(tmp_path / "spans.jsonl", "--edge", 0)
    hint = " ".join(capsys.readouterr().out.split())
    assert "If they are strangers, say so: --outside 'orders:GET /orders'" in hint
    audit(tmp_path / "spans.jsonl", "--edge", 0, "--outside", "orders:GET /orders", "--json")
    chains = json.loads(capsys.readouterr().out)["chains"]
    assert (chains["whole"], chains["total"], chains["begun_outside"]) == (90, 90, 40)


@pytest.mark.parametrize(("least", "code"), [("0.75", 0), ("0.7500001", 1), ("0.99", 1), ("0", 0)])
def test_fail_under(broken: Path, capsys: Captured, least: str, code: int) -> None:
    assert audit(broken, "--edge", 0, "--fail-under", least) == code
    printed = capsys.readouterr()
    assert printed.out.startswith("150 of 200 chains whole"), "the report comes whatever the code is"
    assert ("less than --fail-under" in printed.err) == bool(code)


def test_fail_under_works_beside_json(broken: Path, capsys: Captured) -> None:
    assert audit(broken, "--edge", 0, "--fail-under", 0.9, "--json") == 1
    assert json.loads(capsys.readouterr().out)["chains"]["share"] == 0.75


def test_source_that_is_not_there(tmp_path: Path, capsys: Captured) -> None:
    assert audit(tmp_path / "nowhere.jsonl") == 2
    printed = capsys.readouterr()
    assert "nowhere.jsonl" in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)


def test_one_missing_source_of_two_is_not_overlooked(whole: Path, tmp_path: Path) -> None:
    assert audit(whole, tmp_path / "nowhere.jsonl") == 2


@pytest.mark.parametrize("content", ["", "\n\n", "not spans\n", '{"resourceSpans":[]}\n'])
def test_nothing_that_could_be_read(tmp_path: Path, capsys: Captured, content: str) -> None:
    (tmp_path / "spans.jsonl").write_text(content)
    assert audit(tmp_path / "spans.jsonl", "--fail-under", 0.5) == 2
    printed = capsys.readouterr()
    assert "no spans in" in printed.err
    assert "Nothing breaks" not in printed.out


def test_no_source_at_all(capsys: Captured) -> None:
    assert audit() == 2
    assert "name a SOURCE" in capsys.readouterr().err


@pytest.mark.parametrize("mistake", [
    ["--fail-under", "99"], ["--fail-under", "nan"], ["--edge", "-1"], ["--edge", "inf"],
    ["--examples", "some"], ["--examples", "-1"],
])  # fmt: skip
def test_mistakes_are_named(whole: Path, capsys: Captured, mistake: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        audit(whole, *mistake)
    assert caught.value.code == 2
    assert f"expected {'a' if mistake[0] != '--edge' else 'seconds'}" in capsys.readouterr().err


def test_options_may_stand_between_sources(broken: Path, whole: Path, capsys: Captured) -> None:
    assert audit(broken, "--json", whole) == 0
    assert json.loads(capsys.readouterr().out)["sources"] == [str(broken), str(whole)]


# --- the page ---


def test_html_is_written_with_waterfalls(broken: Path, tmp_path: Path, capsys: Captured) -> None:
    assert audit(broken, "--edge", 0, "--html", tmp_path / "report.html") == 0
    written = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "150 of 200 chains whole" in written
    assert 'id="waterfalls"' in written
    assert 'id="time"' in written
    assert capsys.readouterr().out.startswith("150 of 200")


@pytest.mark.skipif(browser.chromium() is None, reason="no Chromium here")
def test_html_of_real_spans_is_drawn_without_a_complaint(broken: Path, tmp_path: Path) -> None:
    audit(broken, "--edge", 0, "--html", tmp_path / "report.html")
    drawn = browser.picture(tmp_path / "report.html", tmp_path)
    assert drawn.console == []
    assert drawn.different_lines > 300


def test_html_that_cannot_be_written(broken: Path, tmp_path: Path, capsys: Captured) -> None:
    assert audit(broken, "--html", tmp_path / "no" / "folder.html") == 2
    assert "folder.html" in capsys.readouterr().err


# --- comparison ---


def test_worse_after_is_1_and_better_is_0(broken: Path, whole: Path, capsys: Captured) -> None:
    assert audit("--compare", whole, broken, "--edge", 0) == 1
    assert "WORSE" in capsys.readouterr().out
    assert audit("--compare", broken, whole, "--edge", 0) == 0
    assert "not worse" in capsys.readouterr().out


def test_source_is_before_and_other_after(broken: Path, whole: Path, capsys: Captured) -> None:
    assert audit(whole, "--compare", broken, "--edge", 0, "--json") == 1
    comparison = json.loads(capsys.readouterr().out)
    assert comparison["schema"] == "tracefill.compare/1"
    assert comparison["before"]["sources"] == [str(whole)]
    assert comparison["after"]["sources"] == [str(broken)]
    assert comparison["worse"]


def test_fail_under_is_about_after(broken: Path, whole: Path) -> None:
    assert audit("--compare", broken, whole, "--edge", 0, "--fail-under", 0.9) == 0
    assert audit("--compare", broken, broken, "--edge", 0) == 0
    assert audit("--compare", broken, broken, "--edge", 0, "--fail-under", 0.9) == 1


def test_saved_document_stands_for_its_spans(broken: Path, whole: Path, tmp_path: Path, capsys: Captured) -> None:
    audit(whole, "--edge", 0, "--json")
    (tmp_path / "last-week.json").write_text(capsys.readouterr().out)
    assert audit(tmp_path / "last-week.json", "--compare", broken, "--edge", 0) == 1
    assert audit(tmp_path / "last-week.json") == 0
    assert "200 of 200 chains whole" in capsys.readouterr().out


def test_saved_document_that_was_cut_off(whole: Path, tmp_path: Path, capsys: Captured) -> None:
    audit(whole, "--json")
    (tmp_path / "cut.json").write_text(capsys.readouterr().out[:-9])
    assert audit(tmp_path / "cut.json") == 2
    assert "cut.json: not the whole" in capsys.readouterr().err


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_comparison_of_one_or_three_is_a_mistake(names: list[str], capsys: Captured) -> None:
    assert audit("--compare", *names) == 2
    assert "--compare takes two things" in capsys.readouterr().err


# --- the bar ---


def test_bar_is_shown_to_a_terminal_on_standard_error_only(whole: Path) -> None:
    ours, theirs = pty.openpty()
    command = [
        sys.executable,
        "-c",
        "import sys; from tracefill.cli import main; sys.exit(main())",
        "audit",
        str(whole),
    ]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as running:
        os.close(theirs)
        assert running.stdout
        printed = running.stdout.read().decode()
        shown = _all_of(ours)
    assert running.returncode == 0
    assert "\x1b" not in printed
    assert "spans" in shown
    assert "0:00:00" in shown, "the time left"


def _all_of(terminal: int) -> str:
    text = b""
    try:
        while piece := os.read(terminal, 4096):
            text += piece
    except OSError:  # how Linux says that the other side has gone
        pass
    os.close(terminal)
    return text.decode()
