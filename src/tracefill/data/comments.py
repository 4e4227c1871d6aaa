"""Comments that tell the database whose statement it runs, as sqlcommenter has them. Off until somebody asks for them.

    from tracefill.data import comments
    comments.configure(traceparent=True, constant={"application": "shop"}, tags=current_tags, allow=["tenant_id"])
    cursor.execute("select 1")      # select 1 /*application='shop',tenant_id='t17',traceparent='00-4bf9...-01'*/

https://google.github.io/sqlcommenter/spec: at the end, sorted, keys and values URL-encoded. What is left of them are letters,
digits and `_.-~%`: nothing of it can end the comment, or begin a hint. A statement that holds a comment already, be it in one of
its strings, stays as it was, and so does what is no text; both the text and the rows that come back are otherwise the same. What
is shown of a statement in its span is shown without.

**Prepared statements.** asyncpg, psycopg and sqlite3 keep statements prepared, and find them again by their text. A comment that
is another one each time would have each of them prepared anew, so what may be prepared gets the `constant` tags alone, which
are part of one text. All of them are added where nothing is kept:

| driver | statements that get the changing tags too |
|---|---|
| psycopg | `prepare=False`, `connection.prepare_threshold = None`, a `ClientCursor` |
| asyncpg | `Connection.execute` without arguments; connections with `statement_cache_size=0` |
| psycopg2 | all |
| PyMySQL, mysqlclient | all but `executemany`, whose text these drivers read to make one INSERT of many |
| sqlite3 | none |

COPY, stored procedures and what goes through `dbapi.trace` are left as they are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import quote

from tracefill.formats import TRACECONTEXT
from tracefill.snapshots import snapshot

__all__ = ["added", "commented", "configure"]

Tags = Mapping[str, object]

#: Longer ones, encoded, are left out: a statement is sent each time.
MEMBER_LENGTH = 256

_SPACE = " \t\r\n"

_logger = logging.getLogger("tracefill")


class _Settings(NamedTuple):
    traceparent: bool
    constant: Tags
    tags: Callable[[], Tags] | None
    allow: frozenset[str]


_settings: _Settings | None = None


def configure(
    *,
    traceparent: bool = False,
    constant: Tags = MappingProxyType({}),
    tags: Callable[[], Tags] | None = None,
    allow: Collection[str] = (),
) -> None:
    """Chooses what the comments of this process say; without arguments there are none.

    `constant`: what is the same for every statement. `tags`: is asked at each statement; of what it returns only the names in
    `allow` are written. Raises TypeError when `allow` is a single str.

    >>> configure(constant={"application": "shop"})
    >>> configure()
    """
    global _settings
    if isinstance(allow, str):
        raise TypeError(f"allow: expected a list of names, got the single str {allow!r}; write [{allow!r}]")
    asked = traceparent or constant or tags is not None
    _settings = _Settings(traceparent, dict(constant), tags, frozenset(allow)) if asked else None


def commented(sql: str, tags: Tags) -> str:
    """The statement with a comment of these tags at its end; as it was where it has a comment, or there is nothing to say.

    >>> commented("select 1;", {"route": "/orders/{no}", "action": "it's"})
    "select 1 /*action='it%27s',route='%2Forders%2F%7Bno%7D'*/;"
    >>> commented("select /*+ a hint */ 1", {"action": "show"})
    'select /*+ a hint */ 1'
    """
    return _ended(sql, _comment(tags))


def added(
    arguments: tuple[Any, ...], named: dict[str, Any], *, kept: bool = False, formatted: bool = False
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of an `execute`, its statement commented as it was configured.

    `kept`: the driver may keep the statement prepared. `formatted`: it replaces `%s` where there are parameters, and takes `%%`
    for a `%`.
    """
    if _settings is None:
        return arguments, named
    name = next((name for name in ("query", "sql", "operation") if name in named), None) if not arguments else None
    sql = arguments[0] if arguments else named.get(name or "")
    if not isinstance(sql, str):
        return arguments, named
    comment = _comment(_settings.constant if kept else _all(_settings))
    if formatted and _has_parameters(arguments, named):
        comment = comment.replace("%", "%%")
    said = _ended(sql, comment)
    return ((said, *arguments[1:]), named) if arguments else (arguments, {**named, str(name): said})


def _ended(sql: str, comment: str) -> str:
    body = sql.rstrip(_SPACE)
    main = body.removesuffix(";").rstrip(_SPACE)
    if not comment or not main or main.endswith(";") or _may_hold_a_comment(sql):
        return sql
    return f"{main} {comment}{body[len(main) :]}"


def _comment(tags: Tags) -> str:
    members = (
        f"{_encoded(key)}='{_encoded(value)}'" for key, value in sorted(tags.items()) if value is not None and key
    )
    said = ",".join(member for member in members if len(member) <= MEMBER_LENGTH)
    return said and f"/*{said}*/"


def _encoded(value: object) -> str:
    return quote(str(value), safe="", errors="replace")


def _may_hold_a_comment(sql: str) -> bool:
    """Also where it is in a string: there the comment would do no harm, but to tell takes a parser for each database."""
    return "/*" in sql or "--" in sql or "#" in sql


def _all(settings: _Settings) -> Tags:
    told: dict[str, object] = dict(settings.constant)
    if settings.tags is not None:
        try:
            told.update((name, value) for name, value in settings.tags().items() if name in settings.allow)
        except Exception:  # the statement is what the program wants
            _logger.debug("the tags for a statement's comment could not be told", exc_info=True)
    if settings.traceparent:
        with snapshot() as here:
            told["traceparent"] = TRACECONTEXT.encode(here)[0]
    return told


def _has_parameters(arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    if len(arguments) > 1:
        return arguments[1] is not None
    return any(named.get(name) is not None for name in ("params", "vars", "args", "params_seq", "vars_list"))
