"""The quick way to the commands that scripts call most: past click, whose import takes longer than a send.

It reads the usual options with plain values. Anything else on the command line (another option, a large number, a
mistake, ``--help``) is left to click, and so are unusual streams: closed ones, a terminal as the input, an encoding
other than UTF-8. That is decided before anything is read or sent. The definitions are click's:
``tests/cli/test_quick.py`` compares `COMMANDS` with them, and what both ways do.
"""

from __future__ import annotations

import sys

from eoq.errors import EoqError
from eoq.ids import new_id
from eoq.protocol.codec import put_bytes
from eoq.protocol.limits import DEFAULT_LEASE, MAX_BATCH, MAX_BODY, MAX_ERROR, MAX_ID, MAX_LEASE, MAX_QUEUE
from eoq.transport.single import Single

from . import plain
from .common import end, read_body

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any, Final, TypeAlias

    Read: TypeAlias = Callable[[str], Any]
    Values: TypeAlias = dict[str, Any]
    Options: TypeAlias = Mapping[str, tuple[str, Read | None, Any]]

DIGITS: Final = 7
"""The most characters of a plain number: with them, every number is in bounds."""


class Unusual(Exception):
    """The command line is one that click should read."""


# ── plain values ────────────────────────────────────────────────────────────────────────────────────────────


def _require(is_usual: bool) -> None:
    if not is_usual:
        raise Unusual


def _anything(text: str) -> str:
    return text


def _body(text: str) -> str:
    _require(len(text) <= MAX_BODY // 4)  # characters, of up to four bytes
    return text


def _queue(text: str) -> str:
    letters = text.replace(".", "").replace("-", "").replace("_", "")
    _require(letters.isalnum() and text.isascii() and text[0].isalnum() and len(text) <= MAX_QUEUE)
    return text


def _name(text: str) -> str:
    _require(1 <= len(text) <= MAX_ID and text.isprintable())
    return text


def _reason(text: str) -> str:
    _require(len(text) <= MAX_ERROR and text.isprintable())
    return text


def _header(text: str) -> dict[str, str]:
    name, equals, content = text.partition("=")
    _require(bool(name and equals) and text.isprintable())
    return {name: content}


def _seconds(text: str) -> float:
    _require(len(text) <= DIGITS and text.isascii() and text.replace(".", "", 1).isdecimal())
    return float(text)


def _some_seconds(text: str) -> float:
    seconds = _seconds(text)
    _require(seconds > 0)
    return seconds


def _lease(text: str) -> float:
    seconds = _some_seconds(text)
    _require(seconds <= MAX_LEASE)
    return seconds


def _whole(text: str) -> int:
    digits = text.removeprefix("-")
    _require(len(digits) <= DIGITS and digits.isascii() and digits.isdecimal())
    return int(text)


def _count(text: str) -> int:
    count = _whole(text)
    _require(1 <= count <= MAX_BATCH)
    return count


# ── the commands ────────────────────────────────────────────────────────────────────────────────────────────


def _send(values: Values) -> int:
    request: Values = {"id": new_id() if values["id"] is None else values["id"]}
    put_bytes(request, "body", _content(values["body"], "body"))
    request.update(op="send", queue=values["queue"], **_given(values, "group", "delay", "ttl"))
    request.update({name: values[name] for name in ("headers", "priority") if values[name]})
    with Single(values["socket"]) as single:
        return plain.send(single, request, values["wait"], values["as_json"])


def _receive(values: Values) -> int:
    with Single(values.pop("socket")) as single:
        return plain.receive(single, **values)


def _ack(values: Values) -> int:
    request: Values = {"op": "ack"}
    if values["result"] is not None:
        put_bytes(request, "result", _content(values["result"], "result"))
    return _settle(values, request)


def _nack(values: Values) -> int:
    return _settle(values, {"op": "nack", **_given(values, "delay", "error")})


def _reject(values: Values) -> int:
    return _settle(values, {"op": "reject", **_given(values, "error")})


def _settle(values: Values, request: Values) -> int:
    with Single(values["socket"]) as single:
        return plain.settle_each(single, values["receipts"], lambda receipt: {**request, "receipt": receipt})


def _extend(values: Values) -> int:
    with Single(values["socket"]) as single:
        return plain.extend(single, values["receipt"], values["seconds"])


def _result(values: Values) -> int:
    with Single(values["socket"]) as single:
        return plain.result(single, values["queue"], values["id_"], values["wait"], values["as_json"])


def _once(values: Values) -> int:
    request: Values = {"op": "once", "key": values["key"], "token": new_id(), "wait": 0.0}
    if values["fingerprint"] is not None:
        request["fingerprint"] = plain.fingerprint(values["fingerprint"], values["command"])
    single = Single(values["socket"])
    return plain.once(single, request, values["command"], values["ttl"], values["wait"], values["keep_failure"])


def _content(argument: str | None, what: str) -> bytes:
    """Return the bytes of an argument, or of standard input, which click's way is to read from a terminal."""
    if argument is None or argument == "-":
        _require(not sys.stdin.isatty())
    return read_body(argument, what)


def _given(values: Values, *names: str) -> Values:
    return {name: values[name] for name in names if values[name] is not None}


class QuickCommand:
    """What the quick way knows of one command.

    ``arguments`` are read in their order, ``least`` of them at least; where ``is_open``, the last one takes all words
    that are left, as a tuple. ``options`` are by name: the parameter, how its value is read (None for a flag), and its
    default. Names are those of click's parameters.
    """

    def __init__(
        self,
        run: Callable[[Values], int],
        arguments: Mapping[str, Read],
        options: Options,
        *,
        least: int | None = None,
        is_open: bool = False,
    ) -> None:
        self.run = run
        self.arguments = arguments
        self.options: Options = {**options, "--socket": ("socket", _anything, None)}
        self.least = len(arguments) if least is None else least
        self.is_open = is_open

    def read(self, words: Sequence[str]) -> Values:
        """Return the values of the parameters. Raises `Unusual`."""
        values: Values = {parameter: default for parameter, _, default in self.options.values()}
        positional: list[str] = []
        left = iter(words)
        for word in left:
            if word == "--":
                positional.extend(left)
            elif word == "-" or not word.startswith("-"):
                positional.append(word)
            else:
                self._read_option(word, left, values)
        return {**values, **self._read_arguments(positional)}

    def _read_option(self, word: str, left: Iterator[str], values: Values) -> None:
        name, equals, text = word.partition("=")
        if name not in self.options:
            raise Unusual
        parameter, read, _ = self.options[name]
        if read is None:
            _require(not equals)
            values[parameter] = True
            return
        found = text if equals else next(left, None)
        if found is None:
            raise Unusual
        value = read(found)
        values[parameter] = {**values[parameter], **value} if parameter == "headers" else value

    def _read_arguments(self, words: list[str]) -> Values:
        count = len(self.arguments)
        _require(len(words) >= self.least and (self.is_open or len(words) <= count))
        values: Values = dict.fromkeys(self.arguments)
        values.update((name, read(word)) for (name, read), word in zip(self.arguments.items(), words, strict=False))
        if self.is_open:
            values[[*self.arguments][-1]] = tuple(words[count - 1 :])
        return values


_JSON: Final[Options] = {"--json": ("as_json", None, False)}
_RECEIPTS: Final[Mapping[str, Read]] = {"receipts": _anything}
_ERROR: Final[Options] = {"--error": ("error", _reason, None)}

COMMANDS: Final = {
    "send": QuickCommand(
        _send,
        {"queue": _queue, "body": _body},
        {
            "--id": ("id", _name, None),
            "--delay": ("delay", _seconds, None),
            "--priority": ("priority", _whole, 0),
            "--group": ("group", _name, None),
            "--header": ("headers", _header, {}),
            "--ttl": ("ttl", _some_seconds, None),
            "--wait": ("wait", _seconds, None),
            **_JSON,
        },
        least=1,
    ),
    "receive": QuickCommand(
        _receive,
        {"queue": _queue},
        {
            "--limit": ("limit", _count, 1),
            "--wait": ("wait", _seconds, 0.0),
            "--lease": ("lease", _lease, DEFAULT_LEASE),
            "--ack": ("acks", None, False),
            **_JSON,
        },
    ),
    "ack": QuickCommand(_ack, _RECEIPTS, {"--result": ("result", _body, None)}, is_open=True),
    "nack": QuickCommand(_nack, _RECEIPTS, {"--delay": ("delay", _seconds, None), **_ERROR}, is_open=True),
    "reject": QuickCommand(_reject, _RECEIPTS, _ERROR, is_open=True),
    "extend": QuickCommand(_extend, {"receipt": _anything, "seconds": _lease}, {}),
    "result": QuickCommand(_result, {"queue": _queue, "id_": _anything}, {"--wait": ("wait", _seconds, 0.0), **_JSON}),
    "once": QuickCommand(
        _once,
        {"key": _name, "command": _anything},
        {
            "--ttl": ("ttl", _some_seconds, None),
            "--wait": ("wait", _seconds, None),
            "--keep-failure": ("keep_failure", None, False),
            "--fingerprint": ("fingerprint", _name, None),
        },
        is_open=True,
    ),
}


def run(words: Sequence[str]) -> int | None:
    """Run the command of these words, and return its exit status. Return None where they are left to click."""
    command = COMMANDS.get(words[0]) if words else None
    if command is None or None in (sys.stdin, sys.stdout, sys.stderr) or sys.stdout.encoding.lower() != "utf-8":
        return None
    try:
        status = command.run(command.read(words[1:]))
        sys.stdout.flush()
    except Unusual:
        return None
    except (EoqError, KeyboardInterrupt, OSError) as error:
        return end(error)
    return status
