"""Whom a CLIENT calls and where a PRODUCER sends to, by all that their spans tell, and by whom they reach elsewhere."""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from functools import cached_property

import numpy as np

from tracefill.audit.forest import Forest
from tracefill.audit.numbering import Array, combine, group, is_in
from tracefill.audit.spans import CONSUMER, PRODUCER

METHODS = frozenset({"get", "post", "put", "patch", "delete", "head", "options", "connect", "trace", "query"})
_VAGUE_NAMES = METHODS | {"http", ""}
_VAGUE_SUBJECTS = np.array([0, zlib.crc32(b"/")], np.uint32)
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
_PUBLIC = re.compile(r"(^|\.)(com|org|net|io|dev|app|co|ai|cloud|eu)(\.[a-z]{2})?$")
_MESSAGE_VERBS = re.compile(
    r"\b(send|sends|sent|publish|create|produce|receive|process|consume|poll|deliver|settle|ack|subscribe)\b|^(apply_async|run)/"
)


class Targets:
    """What the spans of a forest tell about where calls and messages go."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest

    def services_of(self, sender: int) -> set[int]:
        """The services that are seen to be reached by senders with the target of this one."""
        if self.is_of_message(np.array([sender]))[0]:
            return self._services_by_topic.get(int(self.topic(np.array([sender]))[0]), set())
        return self._learned_peers.get(int(self.forest["peer"][sender]), set())

    # --- messages ---

    def is_of_message(self, rows: Array) -> Array:
        """Whether these spans are sides of messages: all but calls."""
        kind = self.forest["kind"][rows]
        return np.asarray((kind == CONSUMER) | (kind == PRODUCER) | (self.forest["destination"][rows] != 0))

    def topic(self, rows: Array) -> Array:
        """A number for the destination; without one, for what is left of the name without words like send."""
        destination = self.forest["destination"][rows]
        return np.where(destination != 0, destination, self._topic_of_name[self.forest["name"][rows]])

    @cached_property
    def _topic_of_name(self) -> Array:
        """For each string the number of what is left of it; names that are no topics keep their own, negative."""
        strings = self.forest.spans.strings
        numbers: dict[str, int] = {text: number for number, text in enumerate(strings)}
        topics = -np.arange(len(strings), dtype=np.int64)
        rows = np.flatnonzero(self.forest.is_far_kind | self.forest.is_near_kind)
        rows = rows[self.forest["destination"][rows] == 0]
        for number in np.unique(self.forest["name"][rows]).tolist():
            topic = _MESSAGE_VERBS.sub("", strings[number].lower()).strip() or strings[number]
            topics[number] = numbers.setdefault(topic, len(numbers))
        return topics

    @cached_property
    def kept_messages(self) -> tuple[Array, Array]:
        """(far, near) rows of the messages that arrived in the trace they were sent in, or are linked."""
        far, near = self.forest.crossings
        messages = self.is_of_message(far)
        return far[messages], near[messages]

    @cached_property
    def topics_leading_to(self) -> dict[int, set[int]]:
        """For each topic of a far side, those of the near sides seen to reach it: an exchange is called otherwise than
        its queues."""
        far, near = self.kept_messages
        return _sets(self.topic(far), self.topic(near))

    @cached_property
    def _services_by_topic(self) -> dict[int, set[int]]:
        far, near = self.kept_messages
        return _sets(self.topic(near), self.forest["service"][far])

    # --- calls ---

    def may_call(self, client: Array, service: int, server: Array) -> Array:
        """Whether each CLIENT may have called these SERVER spans of the service: its peer is known to be the service,
        or nothing is known about its peer and they agree on the address or the operation."""
        forest = self.forest
        peer = forest["peer"][client]
        leads_here = is_in(peer, np.array([one for one, to in self._peers.items() if service in to], np.int32))
        known = is_in(peer, np.fromiter(self._peers, np.int32, len(self._peers)))
        same_address = (peer != 0) & is_in(peer, forest["peer"][server]) & ~self._is_local[peer]
        return np.asarray(leads_here | (~known & (same_address | self._same_operation(client, server))))

    @cached_property
    def _peers(self) -> dict[int, set[int]]:
        """For each peer that is known, the services that it stands for."""
        return {**self._peers_by_name, **self._learned_peers}

    @cached_property
    def _learned_peers(self) -> dict[int, set[int]]:
        far, near = self.forest.crossings
        told = self.forest["peer"][near] != 0
        return _sets(self.forest["peer"][near[told]], self.forest["service"][far[told]])

    @cached_property
    def _peers_by_name(self) -> dict[int, set[int]]:
        """Peers that are called like a service: the whole name, or the first label of a host name that is no public
        one (payments.stripe.com is not our service payments)."""
        strings = self.forest.spans.strings
        used = np.bincount(self.forest["service"], minlength=len(strings))
        services = {_plain(strings[number]): number for number in np.flatnonzero(used).tolist()}
        named = {}
        for number in np.unique(self.forest["peer"][self.forest.senders]).tolist():
            host = strings[number].lower()
            label, _, domain = host.partition(".")
            service = services.get(_plain(host), None if _PUBLIC.search(domain) else services.get(_plain(label)))
            if number and service is not None:
                named[number] = {service}
        return named

    @cached_property
    def _is_local(self) -> Array:
        """For each string, whether it is a name that every machine has for itself."""
        return np.array([text in _LOCAL for text in self.forest.spans.strings], bool)

    def _same_operation(self, client: Array, server: Array) -> Array:
        """Whether a CLIENT's name or subject is that of one of the SERVER spans, and no mere method or `/`."""
        forest = self.forest
        strings = forest.spans.strings
        names = [n for n in np.unique(forest["name"][server]).tolist() if strings[n].lower() not in _VAGUE_NAMES]
        subjects = np.setdiff1d(forest["subject"][server], _VAGUE_SUBJECTS)
        same_name = is_in(forest["name"][client], np.array(names, np.int32))
        return np.asarray(same_name | is_in(forest["subject"][client], subjects))


def _sets(keys: Array, values: Array) -> dict[int, set[int]]:
    """The values of each key."""
    first, _, _ = group(combine(keys, values))
    sets: dict[int, set[int]] = defaultdict(set)
    for key, value in zip(keys[first].tolist(), values[first].tolist(), strict=True):
        sets[key].add(value)
    return sets


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").removesuffix("-service").removesuffix("-svc")
