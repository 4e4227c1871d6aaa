"""The vectors: what the specifications say of named header values, as data in `*.json` beside this.

A text in a vector is a string; `{"join": ["a=", ["x", 4094]]}` is a long one in parts, the second repeated;
`{"hex": "ff"}` is bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def load(name: str) -> list[dict[str, Any]]:
    return [_plain(vector) for vector in json.loads((FOLDER / f"{name}.json").read_text())]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"hex"}:
        return bytes.fromhex(value["hex"])
    if value.keys() == {"join"}:
        return "".join(part if isinstance(part, str) else part[0] * part[1] for part in value["join"])
    return {key: _plain(item) for key, item in value.items()}
