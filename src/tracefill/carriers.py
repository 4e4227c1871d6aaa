"""The carrier shapes, and an OpenTelemetry Getter and Setter that knows them all.

| shape | read | written |
|---|---|---|
| dict, in any case | as it is | lower case; another spelling of the name is replaced |
| WSGI environ | `HTTP_TRACEPARENT` | |
| ASGI scope, or its headers: pairs of bytes | as they are | `(b"traceparent", b"...")` |
| message headers: pairs of str and bytes (Kafka) | the last of one name wins | `("traceparent", b"...")` |
| gRPC metadata, other pairs of str | as they are | `("traceparent", "...")` |
| any other mapping or multi-mapping (werkzeug, multidict, httpx, email.message, os.environ, ...) | all lines | item assignment |
| an object that has `headers` (a request, a record, message properties) | its headers | its headers |

Names are read in any case. Setting replaces: there is never a second header of one name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, MutableMapping
from typing import Any

from opentelemetry.propagators.textmap import Getter, Setter

from tracefill import _codec

__all__ = ["CarrierGetter", "CarrierSetter", "getter", "pairs", "setter"]

Pair = tuple[Any, Any]


def pairs(carrier: Any) -> list[Pair]:
    """All (name, value) lines of a carrier of any shape; raises TypeError when it has none of them.

    >>> pairs({"type": "http", "headers": [(b"b3", b"0")]})
    [(b'b3', b'0')]
    """
    if carrier is None:
        return []
    if isinstance(carrier, dict):
        if isinstance(carrier.get("headers"), (list, tuple)):
            return pairs(carrier["headers"])
        if "REQUEST_METHOD" in carrier:
            return [(k[5:].replace("_", "-"), v) for k, v in carrier.items() if k.startswith("HTTP_")]
        return list(carrier.items())
    if isinstance(carrier, (list, tuple)):
        return [tuple(pair[:2]) for pair in carrier if isinstance(pair, (list, tuple)) and len(pair) >= 2]
    for lines in ("multi_items", "items"):
        method = getattr(carrier, lines, None)
        if callable(method):
            return list(method())
    if hasattr(carrier, "headers"):
        return pairs(carrier.headers)
    if isinstance(carrier, Iterable) and not isinstance(carrier, (str, bytes)):
        return pairs(list(carrier))
    raise TypeError(
        f"carrier: expected a mapping, a list of pairs, a WSGI environ, an ASGI scope or an object with headers, "
        f"got {type(carrier).__name__}"
    )


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, (bytes, bytearray)) else value


class CarrierGetter(Getter[Any]):
    """Reads any carrier of the table above, names in any case."""

    def get(self, carrier: Any, key: str) -> list[str] | None:
        wanted = key.lower()
        values = [_text(value) for name, value in pairs(carrier) if _text(name).lower() == wanted and value is not None]
        return values or None

    def keys(self, carrier: Any) -> list[str]:
        return [_text(name) for name, _ in pairs(carrier)]


class CarrierSetter(Setter[Any]):
    """Writes into any carrier of the table above that can be changed."""

    def set(self, carrier: Any, key: str, value: str) -> None:
        if isinstance(carrier, dict) and isinstance(carrier.get("headers"), list):
            carrier = carrier["headers"]
        if isinstance(carrier, list):
            _set_pair(carrier, key, value)
        elif isinstance(carrier, MutableMapping) or hasattr(carrier, "__setitem__"):
            _set_item(carrier, key, value)
        elif hasattr(carrier, "headers") and carrier.headers is not None:
            self.set(carrier.headers, key, value)
        else:
            raise TypeError(
                f"carrier: expected something that headers can be set in (a mapping or a list of pairs), "
                f"got {type(carrier).__name__}"
            )


def _set_pair(carrier: list[Any], key: str, value: str) -> None:
    """A new pair of the types that the list has already (an empty one: a message's, str and bytes)."""
    name_type, value_type = (type(carrier[0][0]), type(carrier[0][1])) if carrier else (str, bytes)
    carrier[:] = [pair for pair in carrier if _text(pair[0]).lower() != key.lower()]
    carrier.append(
        (
            key.lower().encode("ascii") if issubclass(name_type, bytes) else key.lower(),
            value if issubclass(value_type, str) else value.encode("ascii"),
        )
    )


def _set_item(carrier: Any, key: str, value: str) -> None:
    if isinstance(carrier, MutableMapping):
        for name in [name for name in carrier if isinstance(name, str) and name.lower() == key.lower() and name != key]:
            del carrier[name]
    elif hasattr(carrier, "__delitem__"):
        # email.message.Message and its like append; others complain when there is nothing to delete.
        with contextlib.suppress(KeyError):
            del carrier[key]
    carrier[key] = value


getter = CarrierGetter()
setter = CarrierSetter()
_codec.set_recogniser(pairs)
