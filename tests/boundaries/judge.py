"""Runs a boundary program in a fresh interpreter and judges the spans it left."""

from __future__ import annotations

import ast
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MODES = ("bare", "contrib", "tracefill", "tracefill+contrib", "contrib+tracefill")


class Verdict(NamedTuple):
    word: str  # connected, linked, broken, wrong-parent, wrong-trace, leak, missing, premature end, doubled, ...
    detail: str


def run(path: str, name: str, mode: str, addresses: Mapping[str, str] | None = None, timeout: float = 90) -> Verdict:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "spans.jsonl")
        out.touch()
        first = constant(path, "FIRST") or ""  # what such a program does before it imports anything else
        environment = {
            **os.environ,
            "BOUNDARY_OUT": str(out),
            "BOUNDARY_MODE": mode,
            "BOUNDARY_CONTRIB": " ".join(constant(path, "CONTRIB") or ()),
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            **{f"BOUNDARY_{server.upper()}": address for server, address in (addresses or {}).items()},
        }
        for variable in ("TRACEPARENT", "TRACESTATE", "BAGGAGE"):
            environment.pop(variable, None)
        if "tracefill" in mode:
            environment |= {"OTEL_PROPAGATORS": "tracefill", "OTEL_PYTHON_CONTEXT": "tracefill"}
        try:
            done = subprocess.run(
                [sys.executable, "-c", f"{first}\nimport tests.boundaries.__main__", "--inside", path, name],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Verdict("app-error", f"did not end within {timeout} s")
        records = [json.loads(line) for line in out.read_text().splitlines()]
    if done.returncode:
        return Verdict("app-error", done.stderr[-2000:])
    asked = next((r for r in records if "expect" in r), {"expect": "connected"})
    return judge(records, asked["expect"], asked.get("statements"))


def constant(path: str, name: str) -> Any:
    """A constant of a boundary file, read without running it."""
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return ast.literal_eval(node.value)
    return None


def judge(records: Sequence[dict[str, Any]], expect: str, statements: Mapping[str, int] | None = None) -> Verdict:
    spans = [record for record in records if "name" in record]
    for record in records:
        if "leak" in record or "log" in record:
            return Verdict("leak", record.get("leak") or record["log"])
    by_id = {(span["trace"], span["span"]): span for span in spans}
    fars = [span for span in spans if span["name"].startswith("far")]
    for key, count in (statements or {}).items():
        found = statements_below(f"near{key}", spans, by_id)
        if len(found) != count:
            word = "missing" if len(found) < count else "doubled"
            return Verdict(word, f"{found} below near{key}, not {count} statements, of {[s['name'] for s in spans]}")
    if not fars and not statements:
        return Verdict("missing", f"no far span among {[span['name'] for span in spans]}")
    for far in fars:
        word = relation(far, by_id, spans, expect)
        if word != ("own root" if expect == "own root" else "linked" if expect == "linked" else "connected"):
            return Verdict(
                word, f"{far['name']} under {[s['name'] for s in above(far, by_id)]} of {[s['name'] for s in spans]}"
            )
        early = next((s for s in handling(far, by_id) if s["kind"] == "CONSUMER" and s["end"] < far["end"]), None)
        if early is not None:
            return Verdict("premature end", f"{early['name']} ended before {far['name']}, which is handled under it")
        for child, parent in itertools.pairwise([far, *handling(far, by_id)]):
            if expect != "later" and parent["kind"] == "SERVER" and parent["end"] < child["start"]:
                return Verdict("premature end", f"{parent['name']} ended before {child['name']} began")
    doubled = doubled_spans(spans)
    if doubled:
        return Verdict("doubled", doubled)
    return Verdict(expect if expect in ("own root", "linked") else "connected", f"{len(spans)} spans")


def statements_below(near: str, spans: Sequence[dict[str, Any]], by_id: dict[Any, Any]) -> list[str]:
    return [
        f"{span['name']} ({span['scope']})"
        for span in spans
        if {"db.system", "db.system.name"} & span["attributes"].keys()
        and near in [s["name"] for s in above(span, by_id)]
    ]


def above(span: dict[str, Any], by_id: dict[Any, Any]) -> list[dict[str, Any]]:
    chain = []
    while span["parent"] and (span["trace"], span["parent"]) in by_id and len(chain) < 1000:
        span = by_id[span["trace"], span["parent"]]
        chain.append(span)
    return chain


def handling(span: dict[str, Any], by_id: dict[Any, Any]) -> list[dict[str, Any]]:
    """What a span is done under, up to where the message was sent or the call was made: that end may be over."""
    return list(itertools.takewhile(lambda s: s["kind"] not in ("PRODUCER", "CLIENT"), above(span, by_id)))


def relation(far: dict[str, Any], by_id: dict[Any, Any], spans: Sequence[dict[str, Any]], expect: str) -> str:
    key = far["name"][3:]
    near = next((span for span in spans if span["name"] == f"near{key}"), None)
    if expect == "own root":
        return "own root" if all(not span["name"].startswith("near") for span in above(far, by_id)) else "wrong-parent"
    if near is None:
        return "missing"
    chain = above(far, by_id)
    if any(span is near for span in chain[:1] if expect == "direct") or (
        expect != "direct" and any(s is near for s in chain)
    ):
        return "connected"
    if far["trace"] == near["trace"]:
        return "wrong-parent"
    if any(
        near["span"] in span["links"] or set(span["links"]) & {s["span"] for s in spans if s["trace"] == near["trace"]}
        for span in [far, *chain]
    ):
        return "linked"
    others = {span["trace"] for span in spans if span["name"].startswith("near") and span is not near}
    return "wrong-trace" if far["trace"] in others else "broken"


def doubled_spans(spans: Sequence[dict[str, Any]]) -> str | None:
    """Two spans of one kind for one crossing, of different instrumentations: a child that repeats its parent."""
    by_id = {(span["trace"], span["span"]): span for span in spans}
    for span in spans:
        parent = by_id.get((span["trace"], span["parent"]))
        if (
            parent
            and span["kind"] == parent["kind"] != "INTERNAL"
            and span["pid"] == parent["pid"]
            and span["scope"] != parent["scope"]
        ):
            return f"{span['kind']} {span['name']} ({span['scope']}) under {parent['name']} ({parent['scope']})"
    return None
