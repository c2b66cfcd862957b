"""The commands that are a request or two: they send it, print the reply, and return their exit status.

Both ways to these commands end here: the quick one (``quick.py``), and the one by click's definitions.
"""

from __future__ import annotations

import json
import sys
import time

from eoq.errors import EoqError, InvalidRequest
from eoq.protocol.codec import get_bytes
from eoq.protocol.limits import POLL_SECONDS, REPEAT_SECONDS
from eoq.transport.single import Single

from .common import NOTHING_THERE, bytes_fields, print_bytes, print_json, print_line, print_output, report

TYPE_CHECKING = False  # without an import of `typing`, which takes milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from eoq.protocol.codec import Fields

_ENDED = {
    "dead": "is a dead letter",
    "expired": "has expired",
    "dropped": "was dropped",
    "cancelled": "was cancelled",
    "forwarded": "was forwarded",
}

# ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────


def send(single: Single, request: Fields, wait: float | None, as_json: bool) -> int:
    """Send a message and print its id, or its result where ``wait`` says how many seconds to wait for one."""
    sent = single.ask(request)
    queue, id = request["queue"], sent["id"]
    warn_of_unbound(queue, int(sent.get("queues") == 0))
    if sent["duplicate"]:
        tell_of_duplicates(1)
    if wait is None:
        try:
            print_line(sent_line(id, sent["duplicate"], sent.get("queues"), as_json))
        except OSError:
            report(f"the message is stored, but its id could not be printed: {id}")
            raise
        return 0
    result = _find_result(single, queue, id, wait)
    if result["outcome"] is None:
        report(f"{id} is stored, but had no result within {wait:g} s; `eoq result {queue} {id}` prints it later")
        return NOTHING_THERE
    _print_result(result, {"id": id, "duplicate": sent["duplicate"]} if as_json else None)
    _refuse_failed(id, result)
    return 0


def sent_line(id: str, duplicate: bool, queues: int | None, as_json: bool) -> str:
    """Return the output line of a message that was sent: to how many ``queues``, if it was to a topic."""
    if not as_json:
        return id
    more = {} if queues is None else {"queues": queues}
    return json.dumps({"id": id, "duplicate": duplicate, **more}, ensure_ascii=False)


def warn_of_unbound(topic: str, count: int) -> None:
    """Tell the user of messages for a topic that no binding matches."""
    if count:
        report(
            f"{'the message is' if count == 1 else f'{count:,} messages are'} stored nowhere: no queue that is "
            f"bound to the topic {topic} matches the headers; `eoq topics` shows the bindings"
        )


def tell_of_duplicates(count: int) -> None:
    """Tell a user at a terminal that messages were stored before. A program reads it with ``--json``."""
    if count and sys.stderr.isatty():
        report(
            "a duplicate: it was stored before, and is not stored twice"
            if count == 1
            else f"{count:,} of them are duplicates: they were stored before, and are not stored twice"
        )


# ── results ─────────────────────────────────────────────────────────────────────────────────────────────────


def result(single: Single, queue: str, id: str, wait: float, as_json: bool) -> int:
    """Print the stored result of a message."""
    found = _find_result(single, queue, id, wait)
    if found["outcome"] is None:
        if (place := found.get("forwarded_to")) is not None:
            report(f"{id} was forwarded to {place}; its result has not come back yet")
        return NOTHING_THERE
    _print_result(found, {"queue": queue, "id": id} if as_json else None, with_error=True)
    _refuse_failed(id, found)
    return 0


def _find_result(single: Single, queue: str, id: str, wait: float) -> Fields:
    """Return how a message ended. Its outcome is None if it has not within ``wait`` seconds."""
    deadline = time.monotonic() + wait
    while True:
        left = max(0.0, deadline - time.monotonic())
        portion = min(left, POLL_SECONDS)
        found = single.ask({"op": "result", "queue": queue, "id": id, "wait": portion}, portion)
        if found["outcome"] is not None or time.monotonic() >= deadline:
            return found
        time.sleep(REPEAT_SECONDS)


def _print_result(found: Fields, as_json: Fields | None, with_error: bool = False) -> None:
    """Print a result: its bytes, or an object that begins with the fields of ``as_json``."""
    body = get_bytes(found.get("result"), found.get("result_base64"), "result")
    if as_json is None:
        if body is not None:
            print_bytes(body)
        return
    fields = {} if body is None else bytes_fields("result", body)
    error = {"error": found["error"]} if with_error and found.get("error") is not None else {}
    place = {"forwarded_to": found["forwarded_to"]} if "forwarded_to" in found else {}
    print_json({**as_json, "outcome": found["outcome"], **fields, **error, **place})


def _refuse_failed(id: str, found: Fields) -> None:
    """Raise `InvalidRequest` if a message ended in any other way than ``done``."""
    outcome = found["outcome"]
    if outcome != "done":
        raise InvalidRequest(f"{id} {_ENDED.get(outcome, outcome)}: {found.get('error') or 'no reason was given'}")


# ── receiving and settling ──────────────────────────────────────────────────────────────────────────────────


def receive(single: Single, queue: str, limit: int, wait: float, lease: float, acks: bool, as_json: bool) -> int:
    """Lease messages and print them. Ack them afterwards if ``acks``."""
    request = {"op": "receive", "queue": queue, "limit": limit, "lease": lease, "bound": False}
    deadline = time.monotonic() + wait
    while True:
        portion = max(0.0, min(deadline - time.monotonic(), POLL_SECONDS))
        messages = single.ask({**request, "wait": portion}, portion)["messages"]
        if messages or time.monotonic() >= deadline:
            break
        time.sleep(REPEAT_SECONDS)
    for message in messages:
        body = get_bytes(message.get("body"), message.get("body_base64"), "body") or b""
        if as_json:
            print_json(_message_fields(queue, message, body))
        else:
            print_bytes(body)
    if acks and messages:
        sys.stdout.flush()
        single.ask({"op": "settle", "acks": [{"receipt": message["receipt"]} for message in messages]})
    return 0 if messages else NOTHING_THERE


def _message_fields(queue: str, message: Fields, body: bytes) -> Fields:
    """Return the JSON fields of a message that was delivered."""
    return {
        "id": message["id"],
        "receipt": message["receipt"],
        **bytes_fields("body", body),
        "headers": message.get("headers") or {},
        "attempt": message["attempt"],
        "priority": message.get("priority", 0),
        "group": message.get("group"),
        "enqueued_at": message["enqueued_at"],
        "seq": message["seq"],
        "queue": queue,
    }


def extend(single: Single, receipt: str, seconds: float) -> int:
    """Extend a lease, and tell if the message was cancelled meanwhile."""
    reply = single.ask({"op": "extend", "receipt": receipt, "seconds": seconds})
    if reply.get("cancelled"):
        report("the message was cancelled: end its work; an ack still settles it as done, anything else as cancelled")
    return 0


def settle_each(single: Single, receipts: Sequence[str], request: Callable[[str], Fields]) -> int:
    """Settle the message of each receipt, by the request that ``request`` makes of it. Return the highest exit status.

    Each error names its receipt. Where the daemon cannot be reached, the remaining ones are not tried.
    """
    if len(receipts) == 1:
        single.ask(request(receipts[0]))
        return 0
    status = 0
    for index, receipt in enumerate(receipts):
        try:
            single.ask(request(receipt))
        except EoqError as error:
            report(f"receipt {receipt}: {error}")
            status = max(status, error.exit_status)
            if error.code == "unavailable":
                if rest := receipts[index + 1 :]:
                    report(f"not tried: {' '.join(rest)}")
                break
    return status


# ── once ────────────────────────────────────────────────────────────────────────────────────────────────────


def once(
    single: Single, request: Fields, command: Sequence[str], ttl: float | None, wait: float | None, keep_failure: bool
) -> int:
    """Print the stored output of a key that is done. Otherwise run the command, or wait until another caller has.

    ``request`` asks for the key without waiting. The run goes on under its token, on a connection of its own.
    """
    with single:
        found = single.ask(request)
    if found["state"] != "done":
        from .once_run import run_once

        return run_once(single.path, request, command, ttl=ttl, wait=wait, keep_failure=keep_failure)
    print_output(
        request["key"], get_bytes(found.get("output"), found.get("output_base64"), "output"), found["output_bytes"]
    )
    status: int = found["status"]
    return status


def fingerprint(text: str, command: Sequence[str]) -> str:
    """Return a fingerprint as it is sent: that of the command line for ``@command``, else the text."""
    if text != "@command":
        return text
    import hashlib

    return "command:" + hashlib.sha256("\0".join(command).encode(errors="surrogateescape")).hexdigest()
