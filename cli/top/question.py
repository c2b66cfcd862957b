"""A question that only the key y answers with yes."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.events import Key
from textual.screen import ModalScreen
from textual.widgets import Static


class Question(ModalScreen[bool]):
    """Asks before something that cannot be undone."""

    CSS = """
    Question { align: center middle; }
    Question Static { width: auto; max-width: 76; height: auto; border: round red; padding: 0 1; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [Binding("y", "answer(True)"), Binding("n,escape,q", "answer(False)")]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Show the question."""
        yield Static(f"{self._text}\n\ny yes   n no", markup=False)

    def action_answer(self, yes: bool) -> None:
        """End with the answer."""
        self.dismiss(yes)

    def on_key(self, event: Key) -> None:
        """Keep other keys from the screen below."""
        if event.key not in ("y", "n", "escape", "q", "ctrl+c"):
            event.stop()
