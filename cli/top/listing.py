"""A list of rows with a cursor. It draws only the rows that are in sight, so ten thousand cost no more than ten."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget


class Listing(Widget, can_focus=True):
    """Rows, each known by a key. The cursor stays on its key when the rows change their order.

    Until it is moved, and after ``home``, it stays on the first row.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)"),
        Binding("down,j", "move(1)"),
        Binding("pageup", "page(-1)"),
        Binding("pagedown,space", "page(1)"),
        Binding("home", "first"),
        Binding("end", "last"),
        Binding("enter", "choose"),
    ]

    class Chosen(Message):
        """A row was chosen with enter."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    def __init__(
        self, head: Callable[[int], str], line: Callable[[str, int], str], style: Callable[[str], str], empty: str
    ) -> None:
        super().__init__()
        self._head = head
        self._line = line
        self._style = style
        self._empty = empty
        self._keys: Sequence[str] = ()
        self._held: str | None = None
        self._cursor = 0
        self._first = 0

    @property
    def current(self) -> str | None:
        """The key under the cursor."""
        return self._keys[self._cursor] if self._keys else None

    def fill(self, keys: Sequence[str]) -> None:
        """Show other rows, or the same ones with new contents."""
        self._keys = keys
        if self._held is not None and self._held in keys:
            self._cursor = keys.index(self._held)
        elif self._held is None:
            self._cursor = 0
        self._cursor = max(0, min(self._cursor, len(keys) - 1))
        self.refresh()

    def render(self) -> Text:
        """Return the rows that are in sight."""
        width, height = self.size.width, max(self.size.height - 1, 1)
        self._first = max(min(self._first, self._cursor), self._cursor - height + 1, 0)
        text = Text(no_wrap=True, end="")
        text.append(self._head(width)[:width], "bold")
        if not self._keys:
            text.append("\n" + self._empty, "dim")
        for index in range(self._first, min(self._first + height, len(self._keys))):
            key = self._keys[index]
            style = self._style(key)
            text.append("\n")
            text.append(self._line(key, width), f"{style} reverse" if index == self._cursor else style)
        return text

    def action_move(self, rows: int) -> None:
        """Move the cursor."""
        self._cursor = max(0, min(self._cursor + rows, len(self._keys) - 1))
        self._held = self.current
        self.refresh()

    def action_page(self, pages: int) -> None:
        """Move the cursor by so many screens."""
        self.action_move(pages * max(self.size.height - 2, 1))

    def action_first(self) -> None:
        """Move the cursor to the first row, and leave it there."""
        self._cursor, self._held = 0, None
        self.refresh()

    def action_last(self) -> None:
        """Move the cursor to the last row."""
        self.action_move(len(self._keys))

    def action_choose(self) -> None:
        """Tell the screen which row was chosen."""
        if self.current is not None:
            self.post_message(self.Chosen(self.current))
