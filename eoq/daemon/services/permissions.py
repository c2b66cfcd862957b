"""Permissions: what each client may do, by the user and the groups of its process, as the configuration says.

Without a section ``[permissions]`` nothing is checked: the server then calls the handlers directly. Root and the user
of the daemon may always do everything, since they can read and write its file.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Final

from ...errors import EoqError, Forbidden
from .. import requests as ask
from ..broker.broker import Broker
from ..config.access import Who, who
from ..config.model import Config
from ..rules.rights import Need, Right, needs
from ..session import Peer, Session

log = logging.getLogger("eoq.daemon")

MAX_REMEMBERED: Final = 20_000
"""For how many queues and keys it is remembered who has a right."""
LOG_SECONDS: Final = 60.0
"""How often at most it is logged that a user is refused one right on one queue."""
MAX_LOGGED: Final = 1000
"""How many refusals are remembered for that."""


class Permissions:
    """The rights that are in force."""

    def __init__(self, broker: Broker, config: Config) -> None:
        self._broker = broker
        self._always = frozenset((0, os.geteuid()))
        self._logged: dict[tuple[int | None, str, str | None], float] = {}
        self._access = config.permissions
        self._known: dict[tuple[Right, str | None], list[Who]] = {}

    def follow(self, config: Config) -> bool:
        """Put the permissions of ``config`` in force. Return whether anything has to be checked."""
        self._access = config.permissions
        self._known = {}
        return self._access.restricts

    def check(self, session: Session, request: ask.Request) -> None:
        """Raise `Forbidden` if the client of a connection may not make this request."""
        for need in needs(request):
            self._require(session, need)

    def why_not(self, user: int, queue: str) -> EoqError | None:
        """Return why a user may not send to a queue or topic, or None where it may. For the files of a spool."""
        if self._allows(Peer(user, lambda: _groups_of(user)), Need(Right.SEND, queue)):
            return None
        return Forbidden(_refusal(f"the owner of the file (uid {user})", Need(Right.SEND, queue)))

    def _require(self, session: Session, need: Need) -> None:
        if need.receipt is not None:
            queue = self._broker.queue_of(need.receipt)
            if queue is None:
                return  # its lease has ended, so nothing is changed through it
            need = Need(need.right, queue)
        if self._allows(session.peer, need):
            return
        user = None if session.peer is None else session.peer.user
        text = _refusal("an unknown user" if user is None else f"the user with the uid {user}", need)
        self._log(user, need, f"{session.consumer or 'a client'}: {text}")
        raise Forbidden(f"{text}; ask the operator of the daemon, whose configuration has [permissions]")

    def _allows(self, peer: Peer | None, need: Need) -> bool:
        if peer is not None and peer.user in self._always:
            return True
        return all(_is_among(peer, allowed) for allowed in self._who(need))

    def _who(self, need: Need) -> list[Who]:
        """Return those of whom a client must be, each time: none where the right is everybody's."""
        place = need.right, need.key if need.right is Right.ONCE else need.queue
        known = self._known.get(place)
        if known is None:
            if len(self._known) >= MAX_REMEMBERED:
                self._known.clear()
            known = self._known[place] = [who(names) for names in self._names(need) if names is not None]
        return known

    def _names(self, need: Need) -> list[list[str] | None]:
        access = self._access
        if need.right is Right.OBSERVE:
            return [access.observe]
        if need.key is not None:
            return [access.of_key(need.key)]
        if need.queue is None:  # all queues
            return [getattr(entry, need.right) for entry in access.queues.values()]
        return [access.of_queue(need.queue, need.right)]

    def _log(self, user: int | None, need: Need, text: str) -> None:
        """Log a refusal, unless the same was logged a moment ago: a client may try for ever."""
        now = time.monotonic()
        place = user, need.right.value, need.queue or need.key
        if now < self._logged.get(place, 0.0):
            return
        if len(self._logged) >= MAX_LOGGED:
            self._logged = {place: until for place, until in self._logged.items() if until > now}
            if len(self._logged) >= MAX_LOGGED:
                return
        self._logged[place] = now + LOG_SECONDS
        log.warning("refused: %s", text)


def _is_among(peer: Peer | None, allowed: Who) -> bool:
    if allowed.everybody:
        return True
    if peer is None:
        return False
    return peer.user in allowed.users or bool(allowed.groups and not allowed.groups.isdisjoint(peer.groups()))


def _refusal(whom: str, need: Need) -> str:
    if need.right is Right.OBSERVE:
        return f"{whom} may not see the queues and their counts (the right `observe`)"
    if need.key is not None:
        return f"{whom} may not use the key {need.key!r} of `once`"
    place = "all queues" if need.queue is None else f"the queue or topic {need.queue!r}"
    return f"{whom} may not {_VERBS[need.right]} {place} (the right `{need.right}`)"


_VERBS: Final = {Right.SEND: "send to", Right.RECEIVE: "read", Right.ADMINISTER: "administer"}


def _groups_of(user: int) -> frozenset[int]:
    """Return the groups of a user, as the system's database has them."""
    import pwd

    try:
        entry = pwd.getpwuid(user)
        return frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid))
    except (KeyError, OSError):
        return frozenset()
