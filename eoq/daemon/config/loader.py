"""Reading the configuration file: the whole of it, or an error that names each place that is wrong.

The file is bounded before it is parsed, also in the length of its lines: the time that a key takes grows with the
square of its parts.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
import time
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec
from msgspec import inspect

from ...errors import EoqError, Forbidden, InvalidRequest
from ..request_values import new_schedule
from .model import MAX_PATTERN, PATTERN, Config
from .settings import QueueSettings

MAX_FILE: Final = 1024 * 1024
"""Bytes of a configuration file."""
MAX_LINE: Final = 2000
"""Characters of a line of it."""
MAX_FOUND: Final = 100
MAX_TOLD: Final = 20
"""Problems that are looked for, and those that an error lists."""
NO_LIMIT: Final = "none"
"""How the section of a queue says that a limit of a later, wider section does not hold for it."""

Table: TypeAlias = dict[str, Any]


class Problem(NamedTuple):
    """One thing that is wrong: where, and what."""

    place: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}" if self.place else self.text


class WrongConfig(InvalidRequest):
    """A configuration that is not right as a whole, so nothing of it counts."""

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        told = [str(problem) for problem in problems[:MAX_TOLD]]
        if len(problems) == 1:
            text = f"the configuration {path} is wrong: {told[0]}"
        else:
            count = f"{len(problems)}" if len(problems) < MAX_FOUND else f"{MAX_FOUND} or more"
            more = ["and more"] if len(problems) > MAX_TOLD else []
            text = "\n  ".join([f"the configuration {path} is wrong in {count} places:", *told, *more])
        super().__init__(text)
        self.problems = problems


def load(path: Path) -> Config:
    """The configuration in ``path``.

    Raises `WrongConfig` with all that is wrong with it, and `Forbidden` where this user may not read it.
    """
    text = _read(path)
    try:
        raw = tomllib.loads(text)
    except RecursionError:
        raise WrongConfig(path, [Problem("", "it is nested too deeply")]) from None
    except ValueError as error:  # also a number of too many digits
        raise WrongConfig(path, [Problem("", f"it is no TOML: {_short(str(error))}")]) from None
    problems: list[Problem] = []
    _check_struct(raw, Config, "", problems)
    if not problems:
        raw["queues"] = {pattern: _typed(section) for pattern, section in raw.get("queues", {}).items()}
        try:
            config = msgspec.convert(raw, Config)
        except msgspec.ValidationError as error:
            problems.append(Problem("", str(error)))
        else:
            problems.extend(_contradictions(config))
    if problems:
        raise WrongConfig(path, problems)
    return config


def shown(value: object) -> str:
    """A value as the file could say it, on one line and not too long."""
    if value is None:
        return NO_LIMIT
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return str(value) if value.bit_length() < 100 else "a number of too many digits"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 2**53 else str(value)
    if isinstance(value, str):
        return _short(json.dumps(value, ensure_ascii=not value.isprintable()))
    if isinstance(value, msgspec.Struct):
        fields = {field.name: getattr(value, field.name) for field in msgspec.structs.fields(value)}
        return ", ".join(f"{name} = {shown(field)}" for name, field in fields.items() if field not in (None, {}, []))
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name_in('', name)} = {shown(item)}" for name, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(shown(item) for item in value) + "]"
    return str(value)  # dates and times


def name_in(place: str, key: str) -> str:
    """The name of ``key`` below ``place``, as a key of TOML."""
    name = key if re.fullmatch("[A-Za-z0-9_-]+", key) else _short(json.dumps(key, ensure_ascii=not key.isprintable()))
    return f"{place}.{name}" if place else name


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:299] + "…"


# ── the file ────────────────────────────────────────────────────────────────────────────────────────────────


def _read(path: Path) -> str:
    try:
        # What is no file (a named pipe, say) must not be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) and path != Path(os.devnull):
                raise InvalidRequest(f"the configuration {path} is no regular file; give the path of one")
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
        raise WrongConfig(path, [Problem("", f"it is no TOML: its byte {error.start + 1:,} is no UTF-8")]) from None
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > MAX_LINE:
            raise WrongConfig(path, [Problem(f"line {number}", f"it has more than {MAX_LINE:,} characters; break it")])
    return text


# ── its values ──────────────────────────────────────────────────────────────────────────────────────────────

_LIMITS: Final = {field.name for field in msgspec.structs.fields(QueueSettings) if field.default is None}


def _check(value: Any, annotation: Any, place: str, problems: list[Problem]) -> None:
    """Adds what is wrong with ``value``, which stands at ``place``."""
    kind = inspect.type_info(annotation)
    kind = kind.type if isinstance(kind, inspect.Metadata) else kind
    if isinstance(kind, inspect.StructType):
        _check_struct(value, kind.cls, place, problems)
        return
    before = len(problems)
    if isinstance(kind, inspect.ListType) and isinstance(kind.item_type, inspect.StructType) and _is_tables(value):
        for number, entry in enumerate(value, 1):
            _check_struct(entry, kind.item_type.cls, f"[[{place}]] no. {number}", problems)
    if len(problems) == before:
        try:
            msgspec.convert(value, annotation)
        except msgspec.ValidationError:
            wanted = _description(inspect.type_info(annotation))
            # Of a list or a table, it is something inside that is wrong.
            alike = isinstance(value, dict if isinstance(kind, inspect.DictType) else list)
            problems.append(Problem(place, f"must be {wanted}" + ("" if alike else f", not {_named(value)}")))


def _check_struct(value: Any, struct: type[msgspec.Struct], place: str, problems: list[Problem]) -> None:
    if not isinstance(value, dict):
        problems.append(Problem(place, f"must be a table, not {_named(value)}"))
        return
    before = len(problems)
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    for key, item in value.items():
        if len(problems) >= MAX_FOUND:
            return
        if key not in fields:
            problems.append(Problem(_below(place, key), _unknown(place, key, item, fields)))
        elif struct is Config and key == "queues":
            _check_queues(item, fields[key].type, problems)
        else:
            _check(item, fields[key].type, _below(place, key), problems)
    missing = [name for name, field in fields.items() if field.required and name not in value]
    problems.extend(Problem(place, f"needs `{name}`") for name in missing)
    if len(problems) == before and struct is not Config:
        try:
            msgspec.convert(value, struct)
        except msgspec.ValidationError as error:  # of its own checks
            problems.append(Problem(place, str(error)))


def _check_queues(value: Any, annotation: Any, problems: list[Problem]) -> None:
    if not isinstance(value, dict):
        problems.append(Problem("queues", f'must be tables like [queues."mail.*"], not {_named(value)}'))
        return
    before = len(problems)
    for pattern, section in value.items():
        place = name_in("queues", pattern)
        if len(pattern) > MAX_PATTERN or not PATTERN.fullmatch(pattern):
            what = "a name of letters, digits and . _ -, or a pattern of these with * ? [...]"
            problems.append(Problem(place, f"fits no queue; write {what}, with at most {MAX_PATTERN} characters"))
        _check_struct(_without_none(section), QueueSettings, place, problems)
    if len(problems) == before:
        _check(value, annotation, "queues", problems)


def _without_none(section: Any) -> Any:
    """A section of a queue in which ``"none"`` is None where that can be said."""
    if not isinstance(section, dict):
        return section
    return {key: None if value == NO_LIMIT and key in _LIMITS else value for key, value in section.items()}


def _typed(section: Table) -> Table:
    """Those settings that a section has, as `QueueSettings` has them."""
    settings = msgspec.convert(_without_none(section), QueueSettings)
    return {name: getattr(settings, name) for name in section}


def _below(place: str, key: str) -> str:
    return f"{place}: {name_in('', key)}" if place.startswith("[[") else name_in(place, key)


def _unknown(place: str, key: str, value: Any, known: Iterable[str]) -> str:
    if place.startswith("queues.") and isinstance(value, dict):
        name = f"{place.removeprefix('queues.')}.{key}".replace('"', "")
        return f'is no setting; a name with dots needs quotes: [queues."{_short(name)}"]'
    kind = "setting" if place else "table"
    close = difflib.get_close_matches(key[:100], known, 1)
    return f"is no {kind}; " + (f"do you mean `{close[0]}`?" if close else f"there are {', '.join(known)}")


def _contradictions(config: Config) -> Iterable[Problem]:
    """What can be said, but cannot be meant."""
    default = QueueSettings()
    others = {key for section in config.queues.values() for key in section}
    for pattern, section in config.queues.items():
        place = name_in("queues", pattern)
        # Another section may have the cap for the same queues.
        cap = section.get("retry_cap", None if "retry_cap" in others else default.retry_cap)
        if cap is not None and (base := section.get("retry_base", 0.0)) > cap:
            text = (
                f"is {shown(base)} seconds and `retry_cap` cuts it to {shown(cap)}; set a `retry_cap` that is not less"
            )
            yield Problem(f"{place}.retry_base", text)
    topics = {bind.topic for bind in config.bind}
    for number, bind in enumerate(config.bind, 1):
        if bind.queue in topics:
            text = f"binds {shown(bind.queue)}, which is a topic itself; what is sent to a topic goes to queues"
            yield Problem(f"[[bind]] no. {number}", text)
    names: set[str] = set()
    for number, schedule in enumerate(config.schedule, 1):
        place = f"[[schedule]] no. {number}"
        try:
            new_schedule(schedule, time.time())
        except EoqError as error:
            yield Problem(place, str(error))
        if schedule.name in names:
            yield Problem(place, f"has the name {shown(schedule.name)} of one before it; take another")
        names.add(schedule.name)
    for name, entries in (("relay", config.relay), ("bind", config.bind)):
        said = [shown(entry) for entry in entries]
        for number, text in enumerate(said, 1):
            if said.index(text) < number - 1:
                yield Problem(f"[[{name}]] no. {number}", f"is there twice ({text}); remove one")


# ── in words ────────────────────────────────────────────────────────────────────────────────────────────────


def _description(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=extra):
            return str((extra or {}).get("description") or _description(inner))
        case inspect.IntType():
            return f"a whole number{_bounds(kind)}"
        case inspect.FloatType():
            return f"a number{_bounds(kind)}"
        case inspect.LiteralType(values=values):
            return " or ".join(f'"{value}"' for value in values)
        case inspect.UnionType(types=types):
            return " or ".join(_description(one) for one in types if not isinstance(one, inspect.NoneType))
        case inspect.ListType():
            return "tables in double brackets, like [[relay]]"
        case inspect.DictType():
            return "a table of texts"
        case _:
            return "a text"


def _bounds(kind: inspect.IntType | inspect.FloatType) -> str:
    low = "" if kind.ge is None else f" from {shown(kind.ge)}"
    low = low if kind.gt is None else f" of more than {shown(kind.gt)} and"
    return low if kind.le is None else f"{low} {'to' if kind.gt is None else 'at most'} {shown(kind.le)}"


def _named(value: Any) -> str:
    if isinstance(value, dict):
        return "a table"
    return "a list" if isinstance(value, list) else shown(value)


def _is_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)
