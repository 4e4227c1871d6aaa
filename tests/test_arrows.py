"""The house: an import may only go down, siblings never import each other, nothing imports the audit or the demo."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src" / "tracefill"
LAYERS = ("gateway", "calls", "handoff", "messages", "jobs", "data")

#: What each part may import, itself and the standard library aside. A part is a top-level module or a folder.
BASE = {
    "_codec",
    "formats",
    "carriers",
    "context",
    "propagators",
    "sdk_spans",
    "semantics",
    "spans",
    "snapshots",
    "tags",
    "ids",
    "wrapping",
}
ALLOWED = {
    "formats": {"_codec"},
    "carriers": {"_codec"},
    "context": {"_codec", "carriers"},
    "propagators": {"_codec", "formats", "carriers"},
    "ids": {"_codec"},
    "semantics": set(),
    "wrapping": {"_codec"},
    "sdk_spans": {"_codec"},
    "spans": {"_codec", "context", "sdk_spans", "semantics"},
    "snapshots": {"_codec", "context"},
    "tags": {"_codec", "context", "formats", "carriers", "semantics", "spans"},
    "audit": {"semantics", "_codec"},
    # What gateway/ and calls/ share about a request that comes in.
    "edge": BASE,
    **{layer: BASE | {"edge"} for layer in LAYERS},
}
TOP = {"cli", "demo", "patches", "startup", "__init__", "__main__"}


def modules() -> list[tuple[str, Path]]:
    return [(".".join(path.relative_to(SOURCE).with_suffix("").parts), path) for path in SOURCE.rglob("*.py")]


def imports(name: str, path: Path) -> set[str]:
    """The modules of tracefill that a module imports, without the `tracefill.` in front."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: -node.level] if node.level else []
            base = ".".join(["tracefill", *package, node.module or ""]).strip(".") if node.level else node.module or ""
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return {module.removeprefix("tracefill.") for module in found if module.startswith("tracefill.")}


def test_every_import_goes_down() -> None:
    wrong = []
    for name, path in modules():
        part = name.split(".")[0]
        if part in TOP:
            continue
        for target in imports(name, path):
            head = target.split(".")[0]
            if head not in ALLOWED.get(part, set()) | {part, "__version__"}:
                wrong.append(f"{name} imports {target}")
    assert wrong == []


def test_siblings_of_a_layer_never_import_each_other() -> None:
    integrations = {
        name for name, path in modules() if name.split(".")[0] in LAYERS and "\ndef patch(" in path.read_text()
    }
    wrong = [
        f"{name} imports {target}"
        for name, path in modules()
        for target in imports(name, path)
        if name in integrations
        and any(target == other or target.startswith(f"{other}.") for other in integrations - {name})
    ]
    assert wrong == []


def test_nothing_imports_the_audit_or_the_demo() -> None:
    wrong = [
        f"{name} imports {target}"
        for name, path in modules()
        for target in imports(name, path)
        if target.split(".")[0] in ("audit", "demo") and name.split(".")[0] not in ("audit", "demo", "cli")
    ]
    assert wrong == []


def test_there_is_no_drawer_for_what_has_no_name() -> None:
    assert [
        name for name, _ in modules() if name.split(".")[-1] in ("utils", "util", "helpers", "misc", "common")
    ] == []


def test_every_part_is_known() -> None:
    assert {name.split(".")[0] for name, _ in modules()} <= set(ALLOWED) | TOP
