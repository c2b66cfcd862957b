"""One connection to a NATS server. It is not repaired: where it breaks, all that waits raises, and another is opened.

So whatever was begun on a connection is begun again on the next, and nothing is believed to have arrived that did not.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ....errors import Forbidden, InvalidRequest, StorageFailed
from .address import CONNECT_SECONDS, Address, NotedTls
from .content import parse_headers
from .driver import nats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from nats.aio.msg import Msg

ANSWER_SECONDS: Final = 30.0
"""How long an answer may take."""
API: Final = "$JS.API."


class Sending(NamedTuple):
    """A message to the server that is answered."""

    subject: str
    body: bytes = b""
    headers: dict[str, str] | None = None


class ServerRefusal(StorageFailed):
    """The server refuses a request. ``number`` is that of the error in JetStream, or 0."""

    def __init__(self, text: str, number: int) -> None:
        super().__init__(text)
        self.number = number


class _Client(nats.aio.client.Client):
    """The driver, which goes on behind a message whose headers it cannot read. Any program may have published it."""

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        # The driver's own raises for some, such as a status that is no text: then its connection reads nothing more.
        try:
            return await super()._process_headers(headers)
        except (ValueError, IndexError):
            return parse_headers(headers)


class _Batch:
    """Answers that are waited for."""

    def __init__(self, count: int) -> None:
        self.answers: list[dict[str, Any]] = [{} for _ in range(count)]
        self.left = count
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class NatsConnection:
    """A connection to the servers of an address. See `open_connection`."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.name = address.name
        self._client = _Client()
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tls: NotedTls | None = None
        self._said = ""
        """What the server or the driver has complained of last."""
        self._numbers = itertools.count()
        self._batches: dict[int, _Batch] = {}
        self._inbox = ""

    async def open(self) -> None:
        """Connect. Raises `StorageFailed`, or `Forbidden` if the server does not let this user in."""
        try:
            with _translated(self.name):
                async with asyncio.timeout(2 * CONNECT_SECONDS):
                    options = self.address.options()
                    self._tls = options.get("tls")
                    for secret in ("token", "password"):  # the driver asks for them where it would send them
                        if secret in options:
                            options[secret] = partial(self._secret, options[secret])
                    await self._client.connect(error_cb=self._complain, closed_cb=self._end, **options)
                    self._insist_on_tls()
                    self._inbox = self._client.new_inbox()
                    await self._client.subscribe(f"{self._inbox}.*.*", cb=self._answered)
        except StorageFailed as error:
            if "authorization" in self._said.lower():
                raise Forbidden(f"{self.name} does not let this user in: {self._said}") from error
            raise

    async def close(self) -> None:
        """Close the connection."""
        self._end_now()
        with suppress(nats.errors.Error, OSError, TimeoutError, AssertionError):  # the last: it was never connected
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._client.close()

    @property
    def is_lost(self) -> bool:
        """Whether the connection has broken, so that it is of no use any more."""
        return self._lost.done()

    @property
    def max_payload(self) -> int:
        """How many bytes a message may have, with its headers."""
        return int(self._client.max_payload)

    def new_inbox(self) -> str:
        """Return a subject of which only this connection knows."""
        return self._client.new_inbox()

    async def subscribe(self, subject: str, take: Callable[[Msg], Awaitable[None]]) -> None:
        """Call ``take`` with each message of a subject."""
        with _translated(self.name):
            await self._client.subscribe(subject, cb=take)

    async def publish(self, sending: Sending, reply: str) -> None:
        """Send a message whose answers go to the subject ``reply``."""
        with _translated(self.name):
            await self._client.publish(sending.subject, sending.body, reply, sending.headers)

    async def ask_all(self, messages: Sequence[Sending]) -> list[dict[str, Any]]:
        """Send messages in this order, and return the answer to each, as it was decoded.

        An answer may be an error, under ``error``. Raises `StorageFailed` if one does not come, so that it is not known
        whether the message has arrived.
        """
        number, batch = next(self._numbers), _Batch(len(messages))
        self._batches[number] = batch
        try:
            for place, message in enumerate(messages):
                if self.is_lost:
                    break
                await self.publish(message, f"{self._inbox}.{number}.{place}")
            await self.wait(batch.done, ANSWER_SECONDS)
        finally:
            del self._batches[number]
        return batch.answers

    async def ask(self, sending: Sending) -> dict[str, Any]:
        """Send a message and return its answer. Raises `ServerRefusal` if that is an error."""
        (answer,) = await self.ask_all([sending])
        if "error" in answer:
            raise ServerRefusal(f"{self.name}: {text_of(answer)}", number_of(answer))
        return answer

    async def api(self, name: str, request: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return what the API of JetStream answers. Raises `ServerRefusal`."""
        return await self.ask(Sending(API + name, json.dumps(request).encode() if request is not None else b""))

    async def wait(self, future: asyncio.Future[None], seconds: float) -> None:
        """Wait for a future that this connection completes. Raises `StorageFailed` if it does not."""
        await asyncio.wait({future, self._lost}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if future.done():
            future.result()
            return
        why = "the connection is lost" if self.is_lost else "no answer"
        raise StorageFailed(f"{self.name}: {why}{f' ({self._said})' if self._said else ''}")

    def _insist_on_tls(self) -> None:
        """Raise an error of the driver if a connection that is to be secure is not: the driver goes on without."""
        if self._tls is not None and not self._tls.is_used:
            raise nats.errors.SecureConnWantedError

    # ── called by the driver ────────────────────────────────────────────────────────────────────────────

    async def _answered(self, message: Msg) -> None:
        number, place = (int(part) for part in message.subject.rsplit(".", 2)[1:])
        batch = self._batches.get(number)
        if batch is None or batch.answers[place]:
            return
        batch.answers[place] = _decoded(message)
        batch.left -= 1
        if not batch.left and not batch.done.done():
            batch.done.set_result(None)

    def _secret(self, secret: str) -> str:
        self._insist_on_tls()
        return secret

    async def _complain(self, error: Exception) -> None:
        self._said = " ".join(str(error).split()) or type(error).__name__

    async def _end(self) -> None:
        self._end_now()

    def _end_now(self) -> None:
        if not self._lost.done():
            self._lost.set_result(None)


@asynccontextmanager
async def open_connection(address: Address) -> AsyncIterator[NatsConnection]:
    """Open a connection for the time of the block. Raises `StorageFailed` or `Forbidden`."""
    connection = NatsConnection(address)
    try:
        await connection.open()
        yield connection
    finally:
        await connection.close()


def text_of(answer: dict[str, Any]) -> str:
    """Return the text of an error that the server has answered."""
    error = answer["error"]
    return str(error.get("description") or error) if isinstance(error, dict) else str(error)


def number_of(answer: dict[str, Any]) -> int:
    """Return the number of an error in JetStream, or 0."""
    error = answer["error"]
    return int(error.get("err_code") or 0) if isinstance(error, dict) else 0


def _decoded(message: Msg) -> dict[str, Any]:
    if (message.headers or {}).get("Status") == "503":
        return {"error": {"description": "nothing answers there: no JetStream, or no such stream"}}
    try:
        answer = json.loads(message.data)
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"error": {"description": "an answer that is no JSON object"}}


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Raise errors of the driver as those of eoq, without what is in a message."""
    try:
        yield
    except ImportError as error:
        raise InvalidRequest(f"credentials of NATS need another package ({error}): pip install nkeys") from error
    except (ValueError, ssl.SSLError) as error:
        raise StorageFailed(f"{name}: {error}") from error
    except (nats.errors.Error, OSError, TimeoutError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        raise StorageFailed(f"{name}: {said}") from error
