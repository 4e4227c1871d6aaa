"""pycurl (7.43 and later): every HTTP request of a Curl or a CurlMulti carries the context and has a client span.

    tracefill.install(only=["pycurl"])
    curl = pycurl.Curl()
    curl.setopt(curl.URL, "http://shop/orders")
    curl.perform()

libcurl tells nobody which headers it has been given, so a handle that was made before install() is left as it is until it is
`reset()`. Redirects that libcurl follows by itself belong to the one span.
Without install(): `headers = {}; inject(headers); curl.setopt(curl.HTTPHEADER, [f"{k}: {v}" for k, v in headers.items()])`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from tracefill.calls.client_spans import Call, Client
from tracefill.context import extract, inject, scope
from tracefill.wrapping import Patches

__all__ = ["LIBRARIES", "extract", "inject", "patch", "scope", "unpatch"]

LIBRARIES = ("pycurl",)

_client = Client("pycurl")
_patches = Patches()

# On a handle: what it has been told, by option; and the call that it makes.
_TOLD = "_tracefill_options"
_CALL = "_tracefill_call"
_METHODS = {"POST": "POST", "HTTPPOST": "POST", "HTTPGET": "GET", "NOBODY": "HEAD", "UPLOAD": "PUT", "PUT": "PUT"}


def patch() -> None:
    import pycurl

    _patches.wrap(pycurl.Curl, "__init__", _init)
    _patches.wrap(pycurl.Curl, "setopt", _setopt)
    _patches.wrap(pycurl.Curl, "unsetopt", _unsetopt)
    _patches.wrap(pycurl.Curl, "reset", _reset)
    for name in ("perform", "perform_rb", "perform_rs"):
        _patches.wrap(pycurl.Curl, name, _perform)
    if hasattr(pycurl.Curl, "duphandle"):
        _patches.wrap(pycurl.Curl, "duphandle", _duphandle)
    _patches.wrap(pycurl.CurlMulti, "add_handle", _add_handle)
    _patches.wrap(pycurl.CurlMulti, "remove_handle", _remove_handle)
    _patches.wrap(pycurl.CurlMulti, "info_read", _info_read)


def unpatch() -> None:
    _patches.undo()


def _init(original: Any) -> Callable[..., None]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        setattr(self, _TOLD, {})

    return init


def _setopt(original: Any) -> Callable[..., Any]:
    def setopt(self: Any, option: Any, value: Any) -> Any:
        result = original(self, option, value)
        told = getattr(self, _TOLD, None)
        if told is not None:
            told.pop(option, None)  # the last one told comes last
            if value is not None:
                told[option] = value
        return result

    return setopt


def _unsetopt(original: Any) -> Callable[..., Any]:
    def unsetopt(self: Any, option: Any) -> Any:
        result = original(self, option)
        told = getattr(self, _TOLD, None)
        if told is not None:
            told.pop(option, None)
        return result

    return unsetopt


def _reset(original: Any) -> Callable[..., Any]:
    def reset(self: Any) -> Any:
        result = original(self)
        setattr(self, _TOLD, {})
        return result

    return reset


def _duphandle(original: Any) -> Callable[..., Any]:
    def duphandle(self: Any, *args: Any, **kwargs: Any) -> Any:
        copied = original(self, *args, **kwargs)
        told = getattr(self, _TOLD, None)
        setattr(copied, _TOLD, None if told is None else dict(told))
        setattr(copied, _CALL, None)
        return copied

    return duphandle


def _perform(original: Any) -> Callable[..., Any]:
    def perform(self: Any, *args: Any, **kwargs: Any) -> Any:
        _begin(self)
        try:
            result = original(self, *args, **kwargs)
        except BaseException as error:
            _end(self, error)
            raise
        _end(self)
        return result

    return perform


def _add_handle(original: Any) -> Callable[..., Any]:
    def add_handle(self: Any, curl: Any) -> Any:
        _begin(curl)
        try:
            return original(self, curl)
        except BaseException as error:
            _end(curl, error)
            raise

    return add_handle


def _remove_handle(original: Any) -> Callable[..., Any]:
    def remove_handle(self: Any, curl: Any) -> Any:
        _end(curl)
        return original(self, curl)

    return remove_handle


def _info_read(original: Any) -> Callable[..., Any]:
    import pycurl

    def info_read(self: Any, *args: Any) -> Any:
        left, done, failed = original(self, *args)
        for curl in done:
            _answered(curl)
        for curl, number, message in failed:
            _answered(curl, pycurl.error(number, message))
        return left, done, failed

    return info_read


def _begin(curl: Any) -> None:
    """Begins the call of a handle that is about to work, and puts our headers among its own."""
    _end(curl)  # one of a multi that was closed meanwhile
    told = getattr(curl, _TOLD, None)
    url = _url(told) if told is not None else None
    if told is None or url is None:
        return
    own = [_text(line) for line in _option(told, "HTTPHEADER") or ()]
    pairs = _pairs(own)
    call = _client.begin(_method(told), url, pairs)
    if call is None:
        return
    ours = dict(pairs)
    call.inject(ours, follows=bool(_option(told, "FOLLOWLOCATION")))
    changed = {name: value for name, value in ours.items() if dict(pairs).get(name) != value}
    replaced = {name.lower() for name in changed}
    kept = [line for line in own if line.partition(":")[0].strip().lower() not in replaced]
    _tell(curl, [*kept, *(f"{name}: {value}" for name, value in changed.items())])
    setattr(curl, _CALL, call)


def _end(curl: Any, error: BaseException | None = None) -> None:
    """Ends the call of a handle, and gives it its own headers back."""
    call: Call | None = getattr(curl, _CALL, None)
    if call is None:
        return
    import pycurl

    _answered(curl, error)
    setattr(curl, _CALL, None)
    with contextlib.suppress(pycurl.error):  # it was closed meanwhile
        _tell(curl, _option(getattr(curl, _TOLD), "HTTPHEADER") or ())


def _answered(curl: Any, error: BaseException | None = None) -> None:
    """The call of a handle has its answer, or its failure."""
    call: Call | None = getattr(curl, _CALL, None)
    if call is None:
        return
    import pycurl

    with contextlib.suppress(pycurl.error):  # it was closed meanwhile
        status = curl.getinfo(curl.RESPONSE_CODE)
        if status:
            call.responded(status)
    call.end(error)


def _tell(curl: Any, headers: Iterable[Any]) -> None:
    """Sets the headers, past the account of what the user has told."""
    told = getattr(curl, _TOLD)
    before = dict(told)
    curl.setopt(curl.HTTPHEADER, list(headers))
    told.clear()
    told.update(before)


def _option(told: dict[int, Any], name: str) -> Any:
    import pycurl

    return told.get(getattr(pycurl, name, -1))


def _url(told: dict[int, Any]) -> str | None:
    """The URL, where it is one of HTTP."""
    url = _option(told, "URL")
    if url is None:
        return None
    text = _text(url)
    if "://" not in text:
        return f"http://{text}"
    return text if text.lower().startswith(("http://", "https://")) else None


def _method(told: dict[int, Any]) -> str:
    import pycurl

    custom = _option(told, "CUSTOMREQUEST")
    if custom is not None:
        return _text(custom)
    found = "GET"
    for option, value in told.items():
        for name, method in _METHODS.items():
            if option == getattr(pycurl, name, None) and value:
                found = method
        if option in (pycurl.POSTFIELDS, getattr(pycurl, "COPYPOSTFIELDS", None)):
            found = "POST"
    return found


def _pairs(lines: Iterable[str]) -> list[tuple[str, str]]:
    return [(name.strip(), value.strip()) for name, colon, value in (line.partition(":") for line in lines) if colon]


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
