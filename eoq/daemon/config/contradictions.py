"""Checks of a configuration as a whole: values that are right by themselves, but contradict each other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Final

from ...errors import EoqError, InvalidRequest
from ..request_values import new_schedule
from .access import unknown_names
from .database_urls import is_stream, is_variable, url_problem
from .model import Config, ForwardConfig, IngestConfig
from .patterns import matches
from .problems import Problem
from .settings import QueueSettings
from .toml_text import to_key, to_text

SHORTEST_KEEP: Final = 86400.0
LONGEST_KEEP: Final = 10 * 366 * 86400.0


def contradictions(config: Config) -> Iterator[Problem]:
    """Yield what is wrong with a configuration as a whole."""
    yield from _of_retries(config)
    yield from _of_bindings(config)
    yield from _of_schedules(config)
    yield from _of_bridges(config)
    yield from unknown_names(config.permissions, config.daemon.socket_group)
    for name, entries in (("relay", config.relay), ("bind", config.bind)):
        texts = [to_text(entry) for entry in entries]
        for number, text in enumerate(texts, 1):
            if texts.index(text) < number - 1:
                yield Problem(f"[[{name}]] no. {number}", f"is there twice ({text}); remove one")


def _of_retries(config: Config) -> Iterator[Problem]:
    all_settings = {name for section in config.queues.values() for name in section}
    for pattern, section in config.queues.items():
        # Without a cap of its own, a queue has the default, unless another section sets it for the same queue.
        default = None if "retry_cap" in all_settings else QueueSettings().retry_cap
        base, cap = section.get("retry_base", 0.0), section.get("retry_cap", default)
        if cap is not None and base > cap:
            text = f"is {to_text(base)} seconds, and `retry_cap` cuts it to {to_text(cap)}; set a larger `retry_cap`"
            yield Problem(to_key("queues", pattern, "retry_base"), text)


def _of_bindings(config: Config) -> Iterator[Problem]:
    topics = {bind.topic for bind in config.bind}
    for number, bind in enumerate(config.bind, 1):
        if bind.queue in topics:
            text = f"binds {to_text(bind.queue)}, which is a topic itself; messages of a topic go to queues only"
            yield Problem(f"[[bind]] no. {number}", text)


def _of_bridges(config: Config) -> Iterator[Problem]:
    bridges: tuple[tuple[str, str, Sequence[ForwardConfig | IngestConfig]], ...] = (
        ("forward", "to", config.forward),
        ("ingest", "from", config.ingest),
    )
    for kind, word, entries in bridges:
        places: set[object] = set()
        for number, entry in enumerate(entries, 1):
            where = f"[[{kind}]] no. {number}"
            url, variable = entry.place
            if (url is None) == (variable is None):
                yield Problem(where, f"needs either `{word}` or `{word}_env`")
            if url is not None and (problem := url_problem(url)) is not None:
                yield Problem(f"{where}: {word}", problem)
            if url is not None and not is_stream(url):
                for name in ("partitions", "partition"):
                    if getattr(entry, name, None) is not None:
                        yield Problem(f"{where}: {name}", "is for a stream of NATS only; PostgreSQL has no partitions")
            if variable is not None and not is_variable(variable):
                yield Problem(f"{where}: {word}_env", "must be the name of a variable of the environment")
            # A queue is forwarded to one place, and ingested from each place once.
            place = entry.queue if kind == "forward" else (entry.queue, *entry.place)
            if place in places:
                yield Problem(where, f"has the queue {to_text(entry.queue)} of an earlier entry; remove one")
            places.add(place)
            if isinstance(entry, IngestConfig):
                yield from _of_ingest(config, entry, where)


def _of_ingest(config: Config, entry: IngestConfig, where: str) -> Iterator[Problem]:
    try:
        fits = SHORTEST_KEEP <= entry.keep_seconds <= LONGEST_KEEP
    except InvalidRequest as error:
        yield Problem(f"{where}: keep", str(error))
    else:
        if not fits:
            yield Problem(f"{where}: keep", f"is {to_text(entry.keep)}; it must be from a day (1d) to 10 years (3650d)")
    if any(matches(entry.queue, other.queue) and other.place == entry.place for other in config.forward):
        text = f"takes {to_text(entry.queue)} from where a [[forward]] puts it, so its messages would go back at once"
        yield Problem(where, text)


def _of_schedules(config: Config) -> Iterator[Problem]:
    names: set[str] = set()
    for number, schedule in enumerate(config.schedule, 1):
        place = f"[[schedule]] no. {number}"
        try:
            new_schedule(schedule, time.time())
        except EoqError as error:
            yield Problem(place, str(error))
        if schedule.name in names:
            yield Problem(place, f"has the name {to_text(schedule.name)} of an earlier schedule; choose another name")
        names.add(schedule.name)
