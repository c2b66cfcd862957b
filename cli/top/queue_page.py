"""The screen of one queue: its messages by state, and what can be done to its dead letters."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from . import actions
from .lines import message_head, message_line, queue_head, queue_line
from .listing import Listing
from .message_page import MessagePage
from .page import Page

if TYPE_CHECKING:
    from eoq.client.aio import AsyncClient

    from .model import Model

STATES: Final = ("ready", "dead", "leased", "delayed", "blocked")
SHOWN: Final = 100
"""Messages of a state that are shown."""


class QueuePage(Page):
    """The messages of one queue."""

    KEYS = "tab state  enter open  p pause  r redrive  R all  d drop  D all  esc back"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab,right", "state(1)", priority=True),
        Binding("shift+tab,left", "state(-1)", priority=True),
        Binding("p", "pause"),
        Binding("r", "redrive"),
        Binding("R,upper_r", "redrive_all"),
        Binding("d", "drop"),
        Binding("D,upper_d", "drop_all"),
        Binding("escape,backspace", "app.pop_screen"),
    ]

    def __init__(self, client: AsyncClient, model: Model, queue: str) -> None:
        super().__init__(client, model)
        self._queue = queue
        known = model.queues.get(queue)
        self._state = "dead" if known is not None and known.dead else "ready"
        self._messages: dict[str, dict[str, Any]] = {}
        self._listing = Listing(self._head, self._line, lambda _: "", "no messages of this state")

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield self.above
        yield self._listing
        yield self.said
        yield self.keys

    async def read(self) -> float:
        """Ask for the messages of the state that is shown."""
        # A daemon that was away is back now, so that only the answer is measured.
        self.model.status = await self.client.status()
        state, began = self._state, time.monotonic()
        self.model.update_queue(self._queue, await self.client.queues(prefix=self._queue, limit=1))
        found = await self.client.peek(self._queue, state, limit=SHOWN)
        if state == self._state:  # not changed meanwhile
            self._messages = {message["id"]: message for message in found}
        return time.monotonic() - began

    def show(self) -> None:
        """Draw the queue's row and its messages."""
        queue = self.model.queues.get(self._queue)
        width = self.size.width
        states = "  ".join(f"[{state}]" if state == self._state else f" {state} " for state in STATES)
        row = "this queue has no messages any more" if queue is None else queue_line(queue, width)
        self.above.update(f"{queue_head(width)}\n{row}\n{self._queue}: {states}")
        self._listing.fill(list(self._messages))

    def _head(self, width: int) -> str:
        return message_head(self._state == "dead", width)

    def _line(self, id: str, width: int) -> str:
        return message_line(self._messages[id], self.model.now, width)

    def action_state(self, step: int) -> None:
        """Show the messages of the next state, or of the one before."""
        self._state = STATES[(STATES.index(self._state) + step) % len(STATES)]
        self._messages = {}
        self.show()
        self.poller.soon()

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Open a message."""
        self.app.push_screen(MessagePage(self.client, self.model, self._queue, event.key))

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────

    def action_pause(self) -> None:
        """Pause the queue, or resume it."""
        queue = self.model.queues.get(self._queue)
        self.act(actions.pause_or_resume(self.client, self._queue, queue is not None and queue.paused))

    def action_redrive(self) -> None:
        """Redrive the dead letter under the cursor."""
        if (id := self._dead_letter()) is not None:
            self.act(actions.redrive(self.client, self._queue, [id], self.model.now))

    def action_drop(self) -> None:
        """Drop the dead letter under the cursor, after a question."""
        if (id := self._dead_letter()) is not None:
            drop = partial(actions.drop, self.client, self._queue, [id], self.model.now)
            self.ask_first(f"Drop the dead letter {id} of {self._queue} for good?", drop)

    def action_redrive_all(self) -> None:
        """Redrive all dead letters, after a question."""
        redrive_all(self, self._queue)

    def action_drop_all(self) -> None:
        """Drop all dead letters, after a question."""
        drop_all(self, self._queue)

    def _dead_letter(self) -> str | None:
        if self._state == "dead" and (id := self._listing.current) is not None:
            return id
        self.tell("this is no dead letter: tab changes to the dead ones")
        return None


def redrive_all(page: Page, queue: str) -> None:
    """Ask, and redrive the dead letters that the queue had at the last answer."""
    if (count := _dead_letters(page, queue)) is not None:
        redrive = partial(actions.redrive, page.client, queue, None, page.model.now)
        page.ask_first(f"Redrive {count} of {queue}?", redrive)


def drop_all(page: Page, queue: str) -> None:
    """Ask, and drop the dead letters that the queue had at the last answer."""
    if (count := _dead_letters(page, queue)) is not None:
        drop = partial(actions.drop, page.client, queue, None, page.model.now)
        page.ask_first(f"Drop {count} of {queue} for good?", drop)


def _dead_letters(page: Page, queue: str) -> str | None:
    """Return how many dead letters a queue has, in words. Where it has none, say so and return None."""
    known = page.model.queues.get(queue)
    if known is None or not known.dead:
        page.tell(f"{queue} has no dead letters")
        return None
    return f"{known.dead:,} dead {'letter' if known.dead == 1 else 'letters'}"
