"""The lines of the view as plain text: sparklines, short numbers, the row of a queue and of a message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from ..common import visible
from ..table import age, body_text, moment
from .model import Model, QueueRow

BARS: Final = "▁▂▃▄▅▆▇█"
NARROW_SPARK: Final = 7
"""Characters of a sparkline on a terminal of 80 columns."""
WIDE_SPARK: Final = 20
SHOWN_BODY: Final = 4000
"""Characters of a body that the view of one message shows."""
_NUMBERS: Final = (
    ("ready", 6),
    ("leased", 6),
    ("oldest", 6),
    ("sent/s", 6),
    ("done/s", 6),
    ("retried", 7),
    ("dead", 5),
)


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the newest values as ``width`` bars, the highest of them as a whole one."""
    newest = list(values)[-width:] if width > 0 else []
    highest = max(newest, default=0)
    top = len(BARS) - 1
    bars = (BARS[0 if highest <= 0 else max(int(value > 0), round(value / highest * top))] for value in newest)
    return "".join(bars).rjust(width)


def number(value: float) -> str:
    """Return a number in at most five characters."""
    if value < 10 and value != int(value):
        return f"{value:.1f}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            scaled = value / (1e3 if unit == "k" else size)
            return f"{scaled:.1f}{unit}" if scaled < 99.9 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"


def seconds(value: float | None) -> str:
    """Return a short duration, or a dash for None."""
    if value is None:
        return "-"
    return age(value) if value >= 1 else f"{value * 1000:.1f}ms"


def cut(text: str, width: int) -> str:
    """Return ``text`` without what a terminal acts on, in exactly ``width`` characters."""
    shown = visible(text[: width + 1])
    return shown.ljust(width) if len(shown) <= width else shown[: max(width - 1, 0)] + "…"


def _widths(width: int) -> tuple[int, int]:
    """Return the width of the names, and that of a sparkline."""
    numbers = sum(size + 1 for _, size in _NUMBERS)
    spark = min(WIDE_SPARK, NARROW_SPARK + max(0, width - 80) // 4)
    return max(8, width - numbers - 2 * (spark + 1)), spark


def queue_head(width: int) -> str:
    """Return the names of the columns of `queue_line`."""
    name, spark = _widths(width)
    titles = [title.rjust(size) for title, size in _NUMBERS]
    return " ".join(
        ["queue".ljust(name), *titles[:2], "depth".rjust(spark), *titles[2:5], "rate".rjust(spark), *titles[5:]]
    )


def queue_line(queue: QueueRow, width: int) -> str:
    """Return the row of a queue. The course of the rate makes room for the word ``paused``."""
    name, spark = _widths(width)
    values = (
        *(number(queue.ready), number(queue.leased), age(queue.oldest)),
        *(number(queue.sent_rate), number(queue.done_rate), number(queue.retried), number(queue.dead)),
    )
    texts = [value.rjust(size) for value, (_, size) in zip(values, _NUMBERS, strict=True)]
    rates = "paused".rjust(spark) if queue.paused else sparkline(queue.rates, spark)
    return " ".join([cut(queue.name, name), *texts[:2], sparkline(queue.depths, spark), *texts[2:5], rates, *texts[5:]])


def summary(model: Model) -> Iterator[str]:
    """Yield the lines above the queues: what the daemon is, all its queues together, and its latencies."""
    status = model.status
    up = age(max(model.now - float(status.get("started_at", model.now)), 0.0))
    ready, leased, dead = (model.sums.get(state, 0) for state in ("ready", "leased", "dead"))
    yield (
        f"eoq {status.get('version', '')} up {up}  {model.count:,} queues  {number(ready)} ready  "
        f"{number(leased)} leased  {number(dead)} dead  by {model.order}"
    )
    latencies = status.get("latencies", {})
    parts = [
        f"{name} {seconds(latencies.get(name, {}).get('p50'))}/{seconds(latencies.get(name, {}).get('p99'))}"
        for name in ("waiting", "handling", "commit")
    ]
    yield f"p50/p99: {'  '.join(parts)}  answer {seconds(model.answer_seconds)}"


def message_head(dead: bool, width: int) -> str:
    """Return the names of the columns of `message_line`."""
    return cut(f"{'id':36} {'tries':>5} {'age':>6} {'error' if dead else 'body'}", width)


def message_line(message: dict[str, Any], now: float, width: int) -> str:
    """Return the row of a message: with its error if it is dead, else with its body."""
    text = message.get("error", "") if message["state"] == "dead" else body_text(message)
    start = f"{cut(message['id'], 36)} {message['attempts']:>5} {age(max(now - message['enqueued_at'], 0)):>6} "
    return start + cut(str(text), max(width - len(start), 0))


def message_text(message: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of one message: its fields, each delivery with its error, and its body."""
    body = body_text(message)
    for name, value in message.items():
        if name not in ("history", "body", "body_base64"):
            yield f"{name:13} {moment(value) if name.endswith('_at') else visible(str(value))}"
    for delivery in message.get("history", ()):
        when = delivery.get("delivered_at")
        yield ""
        yield (
            f"delivery {delivery['delivery']}"
            + (f"    {moment(when)} to {visible(str(delivery.get('consumer', 'unknown consumer')))}" if when else "")
        )
        if "failed_at" in delivery:
            yield f"  failed      {moment(delivery['failed_at'])}"
            yield from (f"  {visible(line)}" for line in str(delivery.get("error", "no reason given")).splitlines())
    yield ""
    yield "body"
    yield from (f"  {visible(line)}" for line in body[:SHOWN_BODY].splitlines())
    if len(body) > SHOWN_BODY:
        yield f"  … {len(body) - SHOWN_BODY:,} more characters; `eoq show` prints all of them"
