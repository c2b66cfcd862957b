"""The view: the screen of all queues, and the application around the screens."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import ClassVar

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import Input

from eoq.client.aio import AsyncClient
from eoq.protocol.limits import MAX_QUEUE

from . import actions
from .lines import cut, queue_head, queue_line, summary
from .listing import Listing
from .model import MOST, ORDERS, Model
from .page import Page
from .queue_page import QueuePage, drop_all, redrive_all


class QueuesPage(Page):
    """All queues, the busiest first."""

    KEYS = "enter open  p pause  r redrive  d drop  / filter  s order  q quit"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pause"),
        Binding("r", "redrive"),
        Binding("d", "drop"),
        Binding("slash", "filter"),
        Binding("s", "order"),
        Binding("escape", "unfilter"),
    ]

    def __init__(self, client: AsyncClient, model: Model) -> None:
        super().__init__(client, model)
        self._listing = Listing(queue_head, self._line, self._style, "no queues")
        self._filter = Input(model.wanted, placeholder="text in the name; enter keeps it, escape shows all queues")

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield self.above
        yield self._listing
        yield self._filter
        yield self.said
        yield self.keys

    def on_mount(self) -> None:
        """Give the keys to the list. Textual calls `Page.on_mount` after this."""
        self._filter.display = False
        self.set_focus(self._listing)

    async def read(self) -> float:
        """Ask for the daemon's state and for queues. The state first: dead letters are changed up to its time."""
        if not self.is_current:
            return 0.0  # the screen above asks for what it shows
        status = await self.client.status()
        began = time.monotonic()
        answer = await self.client.overview(
            ORDERS[self.model.order], contains=self.model.wanted[:MAX_QUEUE], limit=MOST
        )
        self.model.update(status, answer, time.monotonic() - began)
        return self.model.answer_seconds

    def on_screen_resume(self) -> None:
        """Ask at once when the screen above has gone."""
        self.poller.soon()

    def show(self) -> None:
        """Draw the queues."""
        width = self.size.width
        lines = [cut(line, width) for line in summary(self.model)]
        if self.model.wanted:
            lines.append(cut(f"only queues with {self.model.wanted!r} in their name; escape shows all", width))
        if self.model.matching > len(self.model.queues):
            lines.append(cut(f"the first {len(self.model.queues)} of {self.model.matching:,}; / finds others", width))
        self.above.update("\n".join(lines))
        self._listing.fill([queue.name for queue in self.model.shown()])

    def _line(self, name: str, width: int) -> str:
        return queue_line(self.model.queues[name], width)

    def _style(self, name: str) -> str:
        queue = self.model.queues[name]
        return "red" if queue.dead else "yellow" if queue.paused else ""

    def on_listing_chosen(self, event: Listing.Chosen) -> None:
        """Open a queue."""
        self.app.push_screen(QueuePage(self.client, self.model, event.key))

    # ── the filter and the order ────────────────────────────────────────────────────────────────────────

    def action_filter(self) -> None:
        """Let the user type a filter."""
        self._filter.display = True
        self.set_focus(self._filter)
        self.keys.update("type a part of a name  enter keep it  esc all queues")

    def action_unfilter(self) -> None:
        """Show all queues again."""
        self._filter.value = ""
        self._end_filter()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while the user types."""
        self.model.wanted = event.value
        self.show()
        self.poller.soon()

    def on_input_submitted(self) -> None:
        """Keep the filter."""
        self._end_filter()

    def _end_filter(self) -> None:
        self.set_focus(self._listing)
        self._filter.display = False
        self.keys.update(self.KEYS)

    def action_order(self) -> None:
        """Change the order of the queues."""
        self.model.next_order()
        self._listing.action_first()
        self.show()
        self.poller.soon()

    # ── changes ─────────────────────────────────────────────────────────────────────────────────────────

    def action_pause(self) -> None:
        """Pause the queue under the cursor, or resume it."""
        if (name := self._listing.current) is not None:
            self.act(actions.pause_or_resume(self.client, name, self.model.queues[name].paused))

    def action_redrive(self) -> None:
        """Redrive the dead letters of the queue under the cursor, after a question."""
        if (name := self._listing.current) is not None:
            redrive_all(self, name)

    def action_drop(self) -> None:
        """Drop the dead letters of the queue under the cursor, after a question."""
        if (name := self._listing.current) is not None:
            drop_all(self, name)


class TopApp(App[None]):
    """The application: it shows the queues first, and ends on q, Ctrl-C and signals."""

    CSS = """
    Page .above { height: auto; }
    Page Listing { height: 1fr; }
    Page Input { height: 1; border: none; padding: 0; }
    Page .said { height: auto; max-height: 3; }
    Page .keys { height: 1; color: $text-muted; }
    """
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit"),
        Binding("ctrl+c", "quit", priority=True),
    ]

    def __init__(self, client: AsyncClient, wanted: str) -> None:
        super().__init__()
        self._client = client
        self._wanted = wanted

    def on_mount(self) -> None:
        """Show the queues. A signal ends the view like a key, so that the terminal is as it was."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.exit)
        self.push_screen(QueuesPage(self._client, Model(self._wanted)))
