"""URLs of databases and streams in the configuration. Errors do not repeat a URL, which may have a password."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

_SECRETS: Final = {"password", "sslpassword"}
_FORM: Final = "must be a URL such as postgresql://USER@HOST/DATABASE or nats://HOST:4222/STREAM"
_STREAMS: Final = ("nats", "tls")
_NOT_PUBLIC: Final = (
    "has a password, or an @ that is not written as %40; put the password in ~/.pgpass or a service, or the whole URL "
    "in a variable of the environment"
)
_NO_USER: Final = (
    "has a user or a token; name a file of credentials (?creds=FILE), or put the whole URL in a variable of the "
    "environment"
)


def url_problem(url: str) -> str | None:
    """Return what is wrong with the URL of an engine, or None. A URL with a password is wrong: the log shows it."""
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return _FORM
    if parts.scheme in _STREAMS:
        return _problem_of_stream(url, parts.path)
    user, _, hosts = parts.netloc.rpartition("@")
    if parts.scheme not in ("postgresql", "postgres") or not url.isprintable():
        return _FORM
    if ":" in user or any(name.lower() in _SECRETS for name, _value in query):
        return _NOT_PUBLIC
    # A password with a slash or a question mark that is not escaped ends up in the parts behind the host.
    if "@" in url.removeprefix(f"{parts.scheme}://{user}@" if user else "") or not _has_ports(hosts):
        return _NOT_PUBLIC
    return None


def is_stream(url: str) -> bool:
    """Return whether a URL is that of a stream of NATS."""
    return url.partition(":")[0] in _STREAMS


def _problem_of_stream(url: str, path: str) -> str | None:
    if "@" in url.partition("?")[0]:
        return _NO_USER
    return None if url.isprintable() and re.fullmatch("/[A-Za-z0-9_-]{1,100}", path) else _FORM


def is_variable(name: str) -> bool:
    """Return whether a text is the name of a variable of the environment, and not what should be in one."""
    return re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) is not None


def _has_ports(hosts: str) -> bool:
    ports = [re.sub(r"^\[[^\]]*\]|^[^:\[]*", "", host) for host in hosts.split(",")]
    return all(re.fullmatch(r"(?::\d*)?", port) for port in ports)
