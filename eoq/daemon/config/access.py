"""The section ``[permissions]``: which users and groups may do what. ``services/permissions.py`` enforces it.

[permissions]
observe = ["prometheus"]          # who may read counts, metrics, and the list of queues

[permissions.queues."pay.*"]      # a name of a queue or topic, or a pattern with * ? [...]
send = ["www-data", "@web"]       # users, and groups behind an @; numbers too; "*" for everybody
receive = ["worker"]
administer = []                   # only root and the user of the daemon, who may do everything

[permissions.once]                # keys of `eoq once`, or patterns of them
"charge:*" = ["worker"]

For each right, the first section that matches and has it counts. A right that no section names is everybody's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, NamedTuple, TypeVar

from msgspec import Meta, Struct
from msgspec.structs import asdict

from ...protocol.limits import MAX_ID
from .patterns import QueuePattern, matches
from .problems import Problem
from .toml_text import to_key, to_text

T = TypeVar("T")

MAX_NAMED: Final = 1000
"""How many users and groups one right names, and how many sections there are."""
EVERYBODY: Final = "*"
GROUP: Final = "@"
"""Begins the name of a group."""

Name = Annotated[
    str, Meta(pattern=r"^(?:\*|@?[^\s@*:/]{1,100})\Z", description="a user, a group behind an @, or * for everybody")
]
_NAMES: Final = 'users and groups, such as ["worker", "@web"], or ["*"] for everybody'
Names = Annotated[list[Name], Meta(max_length=MAX_NAMED, description=_NAMES)]
OptionalNames = Annotated[Names | None, Meta(description=_NAMES)]
KeyPattern = Annotated[str, Meta(min_length=1, max_length=MAX_ID, description="a key, or a pattern with * ? [...]")]


class QueueAccess(Struct, forbid_unknown_fields=True, frozen=True):
    """Who may do what with some queues and topics. None leaves a right to a later section."""

    send: OptionalNames = None
    receive: OptionalNames = None
    administer: OptionalNames = None


class AccessConfig(Struct, forbid_unknown_fields=True, frozen=True):
    """Who may do what: the whole section."""

    observe: OptionalNames = None
    queues: Annotated[dict[QueuePattern, QueueAccess], Meta(max_length=MAX_NAMED, description="tables")] = {}
    once: Annotated[dict[KeyPattern, Names], Meta(max_length=MAX_NAMED, description="a table of lists")] = {}

    @property
    def restricts(self) -> bool:
        """Whether anything is not allowed to everybody."""
        return self != AccessConfig()

    @property
    def order(self) -> list[str]:
        """The patterns in the order in which they count."""
        return [*self.queues, *self.once]

    def of_queue(self, name: str, right: str) -> list[str] | None:
        """Return who has a right on a queue or topic, or None where it is everybody's."""
        return _first(getattr(entry, right) for pattern, entry in self.queues.items() if matches(name, pattern))

    def of_key(self, key: str) -> list[str] | None:
        """Return who may use a key of `eoq once`, or None where everybody may."""
        return _first(names for pattern, names in self.once.items() if matches(key, pattern))

    def entries(self) -> Iterator[tuple[str, list[str]]]:
        """Yield each list of names with its place in the file."""
        if self.observe is not None:
            yield "permissions.observe", self.observe
        for pattern, entry in self.queues.items():
            for right, names in asdict(entry).items():
                if names is not None:
                    yield to_key("permissions", "queues", pattern, right), names
        for pattern, named in self.once.items():
            yield to_key("permissions", "once", pattern), named


def _first(values: Iterator[T | None]) -> T | None:
    return next((value for value in values if value is not None), None)


# ── the numbers of names ────────────────────────────────────────────────────────────────────────────────────


class Who(NamedTuple):
    """The users and groups that have a right, by their numbers."""

    everybody: bool
    users: frozenset[int]
    groups: frozenset[int]


def user_of(name: str) -> int:
    """Return the number of a user. Raises `KeyError` where this machine has none of this name."""
    import pwd

    return int(name) if _is_number(name) else pwd.getpwnam(name).pw_uid


def group_of(name: str) -> int:
    """Return the number of a group. Raises `KeyError` where this machine has none of this name."""
    import grp

    return int(name) if _is_number(name) else grp.getgrnam(name).gr_gid


def who(names: list[str]) -> Who:
    """Return the numbers of names. A name that this machine does not know stands for nobody."""
    users, groups = set(), set()
    for name in names:
        try:
            if name.startswith(GROUP):
                groups.add(group_of(name[1:]))
            elif name != EVERYBODY:
                users.add(user_of(name))
        except KeyError:
            continue  # it has gone since the file was checked
    return Who(EVERYBODY in names, frozenset(users), frozenset(groups))


def unknown_names(access: AccessConfig, socket_group: str | None) -> Iterator[Problem]:
    """Yield the names that this machine does not know. A right that nobody has by mistake is worse than no start."""
    places: list[tuple[str, list[Any]]] = [*access.entries()]
    if socket_group is not None:
        places.append(("daemon.socket_group", [GROUP + socket_group]))
    for place, names in places:
        for name in names:
            try:
                if name.startswith(GROUP):
                    group_of(name[1:])
                elif name != EVERYBODY:
                    user_of(name)
            except KeyError:
                kind = "group" if name.startswith(GROUP) else "user"
                text = to_text(name.removeprefix(GROUP))
                yield Problem(place, f"names the {kind} {text}, which this machine does not have; create it first")


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and int(name) < 2**32
