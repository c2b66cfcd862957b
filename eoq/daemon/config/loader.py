"""Reading the configuration file: all of it, or an error that lists everything that is wrong.

msgspec checks the values. This module adds where in the file each one is. The file is bounded before it is parsed, also
in the length of its lines: the time to parse a key grows with the square of the number of its parts.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec

from ...errors import Forbidden, InvalidRequest
from .contradictions import contradictions
from .model import Config
from .patterns import QueuePattern
from .problems import MAX_FOUND, Problem, WrongConfig
from .settings import QueueSettings
from .toml_text import NO_LIMIT, shorten, to_key, to_text

MAX_FILE: Final = 1024 * 1024
"""Bytes of a configuration file."""
MAX_LINE: Final = 2000
"""Characters of one of its lines."""


def load(path: Path) -> Config:
    """Read the configuration in ``path``.

    Raises `WrongConfig` with everything that is wrong with it, `Forbidden` if this user may not read the file, and
    `InvalidRequest` if it cannot be read for another reason.
    """
    text = _read(path)
    try:
        raw = tomllib.loads(text)
    except RecursionError:
        raise WrongConfig(path, [Problem("", "it is nested too deeply")]) from None
    except ValueError as error:  # also for a number of too many digits
        raise WrongConfig(path, [Problem("", f"it is not TOML: {shorten(str(error))}")]) from None
    problems = list(islice(_check(raw, Config, ""), MAX_FOUND))
    if not problems:
        raw["queues"] = {pattern: _typed(section) for pattern, section in raw.get("queues", {}).items()}
        config = msgspec.convert(raw, Config)
        problems = list(islice(contradictions(config), MAX_FOUND))
    if problems:
        raise WrongConfig(path, problems)
    return config


def _read(path: Path) -> str:
    try:
        # Without waiting: the path may be a named pipe, which is not accepted.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) and path != Path(os.devnull):
                raise InvalidRequest(f"the configuration {path} is not a regular file; give the path of one")
            content = b""
            while len(content) <= MAX_FILE and (part := os.read(descriptor, MAX_FILE + 1)):
                content += part
        finally:
            os.close(descriptor)
    except PermissionError as error:
        raise Forbidden(f"the configuration {path} cannot be read by this user; see `ls -l {path}`") from error
    except (OSError, ValueError) as error:  # ValueError: a path with NUL
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidRequest(f"the configuration {path} cannot be read: {why}") from error
    if len(content) > MAX_FILE:
        raise WrongConfig(path, [Problem("", f"it has more than {MAX_FILE:,} bytes; use patterns for many queues")])
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise WrongConfig(path, [Problem("", f"it is not TOML: its byte {error.start + 1:,} is not UTF-8")]) from None
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE:
            raise WrongConfig(path, [Problem(f"line {number}", f"it has more than {MAX_LINE:,} characters; break it")])
    return text


# ── checks ──────────────────────────────────────────────────────────────────────────────────────────────────

_LIMITS: Final = {field.name for field in msgspec.structs.fields(QueueSettings) if field.default is None}
_WORDS: Final = {
    "`str`": "a string",
    "`int`": "an integer",
    "`float`": "a number",
    "`object`": "a table",
    "`array`": "an array",
    "Expected": "must be",
    "Object missing required field": "needs",
}
"""The words of TOML for those of msgspec."""


def _check(value: Any, annotation: Any, place: str) -> Iterator[Problem]:
    """Yield what is wrong with the parts of a value at ``place``, or, if they are right, with the value as a whole."""
    parts_are_right = True
    for problem in _check_parts(value, annotation, place):
        parts_are_right = False
        yield problem
    if parts_are_right:
        try:
            msgspec.convert(value, annotation)
        except msgspec.ValidationError as error:
            yield Problem(place, _explain(str(error), value, annotation))


def _check_parts(value: Any, annotation: Any, place: str) -> Iterator[Problem]:
    kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if isinstance(value, list) and get_origin(kind) is list and all(isinstance(entry, dict) for entry in value):
        for number, entry in enumerate(value, 1):
            yield from _check(entry, get_args(kind)[0], f"[[{place}]] no. {number}")
    elif isinstance(value, dict) and place == "queues":
        for pattern, section in value.items():
            yield from _check(pattern, QueuePattern, to_key(place, pattern))
            yield from _check(_without_none(section), QueueSettings, to_key(place, pattern))
    elif isinstance(value, dict) and place.startswith("permissions.") and get_origin(kind) is dict:
        for pattern, entry in value.items():
            yield from _check(pattern, get_args(kind)[0], f"{place}.{to_key(pattern)}")
            yield from _check(entry, get_args(kind)[1], f"{place}.{to_key(pattern)}")
    elif isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        for key, item in value.items():
            inner = f"{place}{': ' if place.startswith('[[') else '.' if place else ''}{to_key(key)}"
            if key in fields:
                yield from _check(item, fields[key], inner)
            else:
                yield Problem(inner, _unknown(place, key, item, fields))


def _explain(message: str, value: Any, annotation: Any) -> str:
    """Return what is wrong with a value: msgspec's message in the words of TOML, and the meaning of the setting."""
    help = next((meta.description for meta in getattr(annotation, "__metadata__", ()) if meta.description), "")
    if get_origin(annotation) is Literal:
        help = " or ".join(map(to_text, get_args(annotation)))
    named = "a table" if isinstance(value, dict) else "an array" if isinstance(value, list) else to_text(value)
    if " - at `$" in message and help:  # a part of it is wrong
        return f"must be {help}"
    if " matching regex " in message and help:
        return f"must be {help}, not {named}"
    if message.startswith("Invalid enum value"):
        return f"must not be {named} ({help})"
    message = re.sub(r", got .*| \| null|\.0$", "", message)
    for word, ours in _WORDS.items():
        message = message.replace(word, ours)
    if " length " in message or message.startswith("needs"):
        return message
    return f"{message}, not {named}" + (f" ({help})" if help else "")


def _unknown(place: str, key: str, value: Any, known: Iterable[str]) -> str:
    if place.startswith("queues.") and isinstance(value, dict):
        name = f"{place.removeprefix('queues.')}.{key}".replace('"', "")
        return f'is not a setting; a name with dots needs quotes: [queues."{shorten(name)}"]'
    kind = "setting" if place else "table"
    close = difflib.get_close_matches(key[:100], known, 1)
    return f"is not a {kind}; " + (f"do you mean `{close[0]}`?" if close else f"there are {', '.join(known)}")


def _without_none(section: Any) -> Any:
    """Return a section of a queue with None where a limit is ``"none"``."""
    if not isinstance(section, dict):
        return section
    return {key: None if value == NO_LIMIT and key in _LIMITS else value for key, value in section.items()}


def _typed(section: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a section with the types of `QueueSettings`."""
    settings = msgspec.convert(_without_none(section), QueueSettings)
    return {name: getattr(settings, name) for name in section}
