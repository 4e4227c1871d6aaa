"""Files, folders, patterns, standard input, several processes: whatever the user names is read once and whole."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.audit.systems import Span, System, table
from tests.audit.test_readers_formats import content
from tests.audit.written import FILES, framed, otlp_json, otlp_proto, zipkin
from tracefill import TracefillError
from tracefill.audit import readers
from tracefill.audit.readers import SourceError, read
from tracefill.audit.readers.sources import range_blocks
from tracefill.audit.readers.workers import Task, read_in_processes


def spans(first: int, count: int) -> list[Span]:
    return [Span(trace_id=1 + number // 10, span_id=1 + number) for number in range(first, first + count)]


def lines(told: list[Span]) -> str:
    return "".join(json.dumps(otlp_json([span])) + "\n" for span in told)


# --- what the user names ---


def test_a_folder_is_read_with_all_that_is_in_it_but_what_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "deep" / ".hidden").mkdir(parents=True)
    (tmp_path / "a.jsonl").write_text(lines(spans(0, 2)))
    (tmp_path / "a.jsonl-2026-01-01").write_text(lines(spans(2, 2)))
    (tmp_path / "deep" / "b.gz").write_bytes(gzip.compress(lines(spans(4, 2)).encode()))
    (tmp_path / "deep" / "c").write_bytes(framed([otlp_proto(spans(6, 2))]))
    (tmp_path / "d.json").write_text(json.dumps(zipkin(spans(8, 2))))
    (tmp_path / "empty").write_text("")
    (tmp_path / "README.md").write_text("# Spans of last week\n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / ".hidden.jsonl").write_text("{")
    (tmp_path / "deep" / ".hidden" / "e.jsonl").write_text("{")
    found = read([str(tmp_path)])
    assert sorted(found["span_id"].tolist()) == [span.span_id for span in spans(0, 10)]
    assert found.input.damaged_records == 0


def test_a_pattern_and_several_names_are_read_once_each(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jsonl").write_text(lines(spans(number, 1)))
    found = read([str(tmp_path / "[01].jsonl"), str(tmp_path / "2.jsonl"), str(tmp_path / "**" / "3*")])
    assert content(found) == content(table(spans(0, 4)))


def test_a_file_may_be_called_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a[1].jsonl").write_text(lines(spans(0, 1)))
    assert len(read([str(tmp_path / "a[1].jsonl")])) == 1


@pytest.mark.parametrize("name", ["nowhere.jsonl", "nowhere/*.jsonl"])
def test_what_is_not_there_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder") as caught:
        read([str(tmp_path / name)])
    assert name in str(caught.value)
    assert isinstance(caught.value, TracefillError)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="the folder is empty"):
        read([str(tmp_path)])


def test_a_file_that_was_named_is_read_though_it_looks_like_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("# Notes\nnothing\n")
    assert read([str(tmp_path / "notes")]).input.damaged_records == 2


def test_nothing_named_gives_nothing() -> None:
    assert len(read([])) == 0


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("spans.")])
def test_standard_input_may_be_of_any_format(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FILES[name](tmp_path / name, spans(0, 30))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / name).read_bytes())))
    assert content(read(["-"])) == content(read([str(tmp_path / name)]))


def test_standard_input_may_come_slowly(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    code = "from tracefill.audit.readers import read; print(len(read(['-'])))"
    with subprocess.Popen([sys.executable, "-c", code], stdin=reader, stdout=subprocess.PIPE) as process:
        os.close(reader)
        with os.fdopen(writer, "wb", buffering=0) as pipe:
            text = lines(spans(0, 20)).encode()
            for begin in range(0, len(text), 777):
                pipe.write(text[begin : begin + 777])
        assert process.stdout
        assert process.stdout.read() == b"20\n"


def test_columns_on_standard_input_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FILES["spans.parquet"](tmp_path / "x", spans(0, 1))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((tmp_path / "x").read_bytes())))
    with pytest.raises(SourceError, match=r"^-: expected spans in OTLP JSON lines, .*; came Parquet"):
        read(["-"])


# --- ranges and processes ---


@pytest.mark.parametrize("size", [1, 7, 100, 1000])
def test_ranges_of_a_file_hold_each_line_once(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one\n\nthree, which is longer\nfour\r\n\n" + b"x" * 300 + b"\nlast, without an end")
    total = path.stat().st_size
    ranges = [
        b"".join(range_blocks(path, start, min(start + size, total), lambda count: None))
        for start in range(0, total, size)
    ]
    assert b"".join(ranges) == path.read_bytes()
    assert all(part.endswith(b"\n") for part in ranges[:-1] if part and part != ranges[-1] and b"last" not in part)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges and thresholds so small that a little file is read as a huge one is."""
    monkeypatch.setattr(readers, "RANGE_BYTES", 20_000)
    monkeypatch.setattr(readers, "WORTH_PROCESSES_BYTES", 0)


@pytest.mark.usefixtures("small_steps")
def test_processes_change_nothing(tmp_path: Path) -> None:
    system = System(3, requests=20)
    system.run()
    FILES["otlp.jsonl"](tmp_path / "a.jsonl", system.spans)
    FILES["jaeger.json"](tmp_path / "b.json", spans(0, 30))
    text = (tmp_path / "a.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([*text[:20], b"{", b"", *text[20:], b"[]\n", b"{}"]))
    by_one, by_two = (read([str(tmp_path)], processes=count) for count in (1, 2))
    assert content(by_one) == content(by_two)
    assert by_one.input == by_two.input
    numbers = [damaged.record for damaged in by_two.input.damaged]
    assert numbers == [
        1 + line
        for line, found in enumerate((tmp_path / "a.jsonl").read_bytes().split(b"\n"))
        if found in (b"{", b"[]")
    ]


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("processes", [1, 2])
def test_progress_ends_with_all_bytes_and_spans(processes: int, tmp_path: Path) -> None:
    told: list[tuple[int, int | None, int]] = []
    (tmp_path / "a").write_text(lines(spans(0, 300)))
    (tmp_path / "b").write_bytes(gzip.compress(lines(spans(300, 100)).encode()))
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    read([str(tmp_path)], processes=processes, progress=lambda *step: told.append(step))
    assert told[-1] == (size, size, 400)
    assert told == sorted(told)
    assert len(told) > 5


def test_progress_of_a_stream_has_no_total(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int | None, int]] = []
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines(spans(0, 3)).encode())))
    read(["-"], progress=lambda *step: told.append(step))
    assert {total for _, total, _ in told} == {None}


def test_an_error_in_a_process_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_in_processes([Task(tmp_path / "gone", "Jaeger")], 1, lambda count, spans: None)
    with pytest.raises(RuntimeError, match="KeyError"):
        read_in_processes([Task(tmp_path / "gone", "no such format")], 1, lambda count, spans: None)


def test_processes_need_no_main_module_of_their_own(tmp_path: Path) -> None:
    """A script without `if __name__ == "__main__"`, as people write them."""
    (tmp_path / "data.jsonl").write_text(lines(spans(0, 50)))
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            from tracefill.audit import readers
            readers.WORTH_PROCESSES_BYTES = readers.RANGE_BYTES = 1000
            print(len(readers.read([{str(tmp_path / "data.jsonl")!r}], processes=2)))
        """)
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=True)
    assert (run.stdout, run.stderr) == ("50\n", "")


# --- memory ---


@pytest.mark.parametrize("name", ["otlp.jsonl", "otlp.jsonl.gz", "otlp.pb", "zipkin.json", "jaeger.json"])
def test_reading_takes_no_more_memory_than_the_table(name: str, tmp_path: Path) -> None:
    """80 MB of text about 2,000 spans: what is not needed is not kept, in whatever format."""
    told = [Span(1, 1 + n, attributes={"note": f"{n:06d}" * 7000}) for n in range(50)]
    FILES[name](tmp_path / "part", told)
    part = (tmp_path / "part").read_bytes()
    text = {"zipkin.json": part[:-1] + (b"," + part[1:-1]) * 39 + b"]"}.get(name, part * 40)
    (tmp_path / name).write_bytes(text)
    code = textwrap.dedent("""
        import resource, sys
        from tracefill.audit import readers
        readers.read([sys.argv[1]], processes=1)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spans = readers.read([sys.argv[2]], processes=1)
        print(len(spans), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """)
    run = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "part", tmp_path / name],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    count, growth_kb = map(int, run.stdout.split())
    assert count == 2000
    assert growth_kb < 40_000, "the text is 80 MB"
