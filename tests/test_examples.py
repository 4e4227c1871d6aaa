"""Every example that the documentation shows runs as printed: docstrings, the core's stub, the README, and docs/http.md."""

from __future__ import annotations

import ast
import doctest
import importlib
import logging
import pkgutil
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import tracefill
from tracefill.edge import request_ids

ROOT = Path(__file__).resolve().parents[1]
# The demo's services start when they are imported under a name of their own; __main__ runs the command line.
MODULES = [
    entry.name
    for entry in pkgutil.walk_packages(tracefill.__path__, "tracefill.")
    if not entry.name.startswith(("tracefill.demo", "tracefill.__main__", "tracefill._codec"))
]


@pytest.fixture(autouse=True)
def _uninstalled():
    yield
    tracefill.uninstall()


@pytest.mark.parametrize("name", ["tracefill", *MODULES])
def test_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_readme() -> None:
    assert doctest.testfile(str(ROOT / "README.md"), module_relative=False).failed == 0


def test_http_page(monkeypatch: pytest.MonkeyPatch) -> None:
    grpc, flask = pytest.importorskip("grpc"), pytest.importorskip("flask")
    werkzeug_test = pytest.importorskip("werkzeug.test")
    monkeypatch.setattr(logging.root, "handlers", [])
    app = flask.Flask(__name__)
    app.get("/orders")(lambda: {"request_id": request_ids.current()})
    with ThreadPoolExecutor(1) as pool, grpc.insecure_channel("127.0.0.1:1") as channel:
        shown = {"app": app, "flask_app": app, "grpc": grpc, "channel": channel, "pool": pool}
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "http.md").read_text(), re.DOTALL):
            exec(block, shown)
    assert set(shown["headers"]) >= {"Accept"}
    called_with = {"traceparent": f"00-{10:032x}-{11:016x}-01"}
    answer = werkzeug_test.Client(shown["shop"]).get("/orders", headers=called_with)
    assert answer.json == {"request_id": f"{10:032x}"}


def test_the_stub_of_the_core() -> None:
    stub = ROOT / "src" / "tracefill" / "_codec.pyi"
    names = {name: getattr(tracefill._codec, name) for name in dir(tracefill._codec) if not name.startswith("_")}
    runner = doctest.DocTestRunner()
    for node in ast.walk(ast.parse(stub.read_text())):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            runner.run(doctest.DocTestParser().get_doctest(text, dict(names), node.name, str(stub), node.lineno))
    assert runner.summarize().failed == 0
    assert runner.summarize().attempted > 5


def test_the_stub_names_what_the_core_has() -> None:
    stub = ast.parse((ROOT / "src" / "tracefill" / "_codec.pyi").read_text())
    for node in stub.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            made = getattr(tracefill._codec, node.name)
            for member in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(member, ast.FunctionDef):
                    assert hasattr(made, member.name), f"{node.name}.{member.name}"
