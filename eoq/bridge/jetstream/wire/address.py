"""The URL of a stream: nats://[USER[:PASSWORD]@]HOST[:PORT][,HOST…]/STREAM[?creds=FILE&…], and how it is shown.

``tls://`` insists on TLS. The parameters name files, as the driver takes them: ``creds`` (credentials of a user),
``nkey`` (a seed), ``ca``, ``cert`` and ``key``. ``synced=yes`` says that the server syncs each message.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from ....errors import InvalidRequest

SCHEMES: Final = ("nats", "tls")
FORM: Final = "nats://HOST:4222/STREAM (or tls://…; characters such as @ / : in a name as %40 %2F %3A)"
_FILES: Final = ("creds", "nkey", "ca", "cert", "key")
_HOST: Final = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
CONNECT_SECONDS: Final = 10
PING_SECONDS: Final = 10
"""A connection that answers nothing for three times as long counts as lost."""


class NotedTls(ssl.SSLContext):
    """Settings of TLS, and whether a connection has used them: the driver goes on without where the server has none."""

    is_used = False

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin TLS. The event loop calls it."""
        self.is_used = True
        return super().wrap_bio(*arguments, **options)


@dataclass(frozen=True)
class Address:
    """A stream on a server, or on the servers of a cluster."""

    scheme: str
    hosts: tuple[str, ...]
    stream: str
    synced: bool
    """Whether the operator says that the server syncs each message."""
    user: str | None = field(repr=False)
    password: str | None = field(repr=False)
    files: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def name(self) -> str:
        """The URL as it may be printed and logged: without user, password and files."""
        return f"{self.scheme}://{','.join(self.hosts)}/{self.stream}"

    def refuse_password(self) -> None:
        """Raise `InvalidRequest` if there is a password or a token, on a command line that all users can read.

        A user without a password is what NATS calls a token.
        """
        if self.user is not None:
            raise InvalidRequest(
                "every user of this machine can read a password or a token on a command line: leave it out of the URL, "
                "and name a file of credentials (?creds=FILE), or put the whole URL in a variable of the environment "
                "(--to-env or --from-env)"
            )

    def options(self) -> dict[str, Any]:
        """Return the options of the driver. Raises `InvalidRequest` for files that cannot be read."""
        options: dict[str, Any] = {
            "servers": [f"{self.scheme}://{host}" for host in self.hosts],
            "name": "eoq",
            "allow_reconnect": False,  # a broken connection is replaced, with what was begun on it
            "connect_timeout": CONNECT_SECONDS,
            "max_reconnect_attempts": 1,  # it counts for the first connection as well
            "reconnect_time_wait": 0,
            "ping_interval": PING_SECONDS,
            "max_outstanding_pings": 2,
        }
        if self.user is not None:
            who = {"token": self.user} if self.password is None else {"user": self.user, "password": self.password}
            options |= who
        if "creds" in self.files:
            options["user_credentials"] = self.files["creds"]
        if "nkey" in self.files:
            options["nkeys_seed"] = self.files["nkey"]
        if self.scheme == "tls" or not self.files.keys().isdisjoint(("ca", "cert", "key")):
            options["tls"] = self._tls()
        return options

    def _tls(self) -> NotedTls:
        try:
            context = NotedTls(ssl.PROTOCOL_TLS_CLIENT)
            if "ca" in self.files:
                context.load_verify_locations(self.files["ca"])
            else:
                context.load_default_certs()
            if "cert" in self.files:
                context.load_cert_chain(self.files["cert"], self.files.get("key"))
        except OSError as error:  # `ssl.SSLError` is one
            raise InvalidRequest(f"the files of TLS for {self.name} cannot be used: {error}") from error
        return context


def read_address(url: str) -> Address:
    """Return what a URL says. Raises `InvalidRequest` without a word of the URL, which may have a password."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise _unreadable() from None
    secret, _, hosts = parts.netloc.rpartition("@")
    stream = parts.path.removeprefix("/")
    values = dict(query)
    if (
        parts.scheme not in SCHEMES
        or not url.isprintable()
        or not re.fullmatch(rf"{_HOST}(?:,{_HOST})*", hosts)
        or not re.fullmatch("[A-Za-z0-9_-]{1,100}", stream)
        or parts.fragment
        or len(values) != len(query)
        or not values.keys() <= {*_FILES, "synced"}
        or values.get("synced") not in (None, "yes")
        or any(not values[name] for name in _FILES if name in values)
    ):
        raise _unreadable()
    user, colon, password = secret.partition(":")
    return Address(
        parts.scheme,
        tuple(hosts.split(",")),
        stream,
        "synced" in values,
        unquote(user) if secret else None,
        unquote(password) if colon else None,
        {name: values[name] for name in _FILES if name in values},
    )


def _unreadable() -> InvalidRequest:
    return InvalidRequest(
        f"the URL of the stream cannot be read: write {FORM}. The name of the stream has letters, digits, _ and -. "
        "Behind a ? may stand creds=FILE, nkey=FILE, ca=FILE, cert=FILE, key=FILE and synced=yes"
    )
