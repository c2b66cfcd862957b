"""Call a function again and again, in a thread, while a block runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeating(seconds: float, function: Callable[[], None], name: str) -> Iterator[None]:
    """Call ``function`` every ``seconds`` seconds until the block ends. ``name`` is the name of the thread.

    The end of the block waits for a call that is under way.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            function()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
