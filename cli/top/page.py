"""What the screens have in common: lines above, a list or a text, a line for what happened, and the keys."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, cast

from rich.text import Text
from textual.screen import Screen
from textual.widgets import Static

from eoq.errors import EoqError

from ..common import visible
from .polling import Poller
from .question import Question

if TYPE_CHECKING:
    from eoq.client.aio import AsyncClient

    from .model import Model


class Page(Screen[None]):
    """A screen that asks the daemon again and again, and says on one line what happened."""

    KEYS = ""

    def __init__(self, client: AsyncClient, model: Model) -> None:
        super().__init__()
        self.client = client
        self.model = model
        self.above = Static("", classes="above", markup=False)
        self.said = Static("", classes="said", markup=False)
        self.keys = Static(self.KEYS, classes="keys", markup=False)
        self.poller = Poller(self.read, self.polled)
        self._trouble: str | None = None
        self._happened = ""

    def on_mount(self) -> None:
        """Begin to ask."""
        self.show()
        self.run_worker(self.poller.run())

    def on_resize(self) -> None:
        """Draw again for another size."""
        self.show()

    async def read(self) -> float:
        """Ask the daemon for what this screen shows. Return how long the answer took, in seconds."""
        raise NotImplementedError

    def show(self) -> None:
        """Draw what is known."""
        raise NotImplementedError

    def polled(self, trouble: str | None) -> None:
        """Draw a new answer, or say why there is none."""
        self._trouble = trouble
        self.show()
        self._say()

    def tell(self, text: str) -> None:
        """Say what has happened."""
        self._happened = text
        self._say()

    def _say(self) -> None:
        if self._trouble is not None:
            self.said.update(Text(visible(self._trouble), "bold red"))
        else:
            self.said.update(visible(self._happened))

    def act(self, action: Coroutine[Any, Any, str]) -> None:
        """Do something without holding up the keys, and say what came of it."""
        self.run_worker(self._do(action))

    async def _do(self, action: Awaitable[str]) -> None:
        try:
            self.tell(await action)
        except EoqError as error:
            self.tell(str(error))
        self.poller.soon()

    def ask_first(self, question: str, action: Callable[[], Coroutine[Any, Any, str]]) -> None:
        """Do something if the user answers the question with yes."""

        def answered(yes: bool | None) -> None:
            if yes:
                self.act(action())
            else:
                self.tell("nothing was changed")

        self.app.push_screen(Question(question), cast("Callable[[bool | None], None]", answered))
