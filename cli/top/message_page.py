"""The screen of one message: its fields, each delivery with its error, and its body."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from .lines import cut, message_text
from .listing import Listing
from .page import Page

if TYPE_CHECKING:
    from eoq.client.aio import AsyncClient

    from .model import Model


class MessagePage(Page):
    """All that is stored of one message."""

    KEYS = "arrows scroll  esc back  q quit"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,backspace", "app.pop_screen")]

    def __init__(self, client: AsyncClient, model: Model, queue: str, id: str) -> None:
        super().__init__(client, model)
        self._queue = queue
        self._message_id = id
        self._lines: list[str] = []
        self._listing = Listing(self._head, self._line, lambda _: "", "")

    def compose(self) -> ComposeResult:
        """Lay out the screen."""
        yield self._listing
        yield self.said
        yield self.keys

    async def read(self) -> float:
        """Ask for the message."""
        self._lines = list(message_text(await self.client.show(self._queue, self._message_id)))
        return 0.0  # one message is no work to speak of

    def show(self) -> None:
        """Draw the message."""
        self._listing.fill([str(index) for index in range(len(self._lines))])

    def _head(self, width: int) -> str:
        return cut(f"{self._queue} {self._message_id}", width)

    def _line(self, key: str, width: int) -> str:
        return cut(self._lines[int(key)], width)
