"""Refuses a handler that cannot work, before any message is touched."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial

from ..errors import InvalidRequest
from ..message import Delivery, Message


def check_handler(handler: Callable[..., object], *, inbox: bool, messages: type[Delivery]) -> None:
    """Raise `InvalidRequest` if ``handler`` cannot be called like a handler of this client.

    ``messages`` is the class of its messages. A callable whose signature is not known, like some builtins, is accepted.
    """
    if not callable(handler):
        raise InvalidRequest(f"a handler is a function, and not {handler!r}")
    arguments = ("tx", "message") if inbox else ("message",)
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            signature.bind(*arguments)
        except TypeError as error:
            raise InvalidRequest(
                f"the handler is called as `handler({', '.join(arguments)})`, which its signature {signature} does not "
                f"allow: {error}"
            ) from error
    kinds = [_function(handler), _function(getattr(handler, "__call__", None))]  # noqa: B004 # its code, not whether
    if any(inspect.isgeneratorfunction(kind) or inspect.isasyncgenfunction(kind) for kind in kinds):
        raise InvalidRequest("the handler has a `yield`, so that calling it runs nothing: return the result instead")
    if messages is Message and any(inspect.iscoroutinefunction(kind) for kind in kinds):
        raise InvalidRequest("the handler is `async def`, which the blocking client cannot run: use `connect_async`")


def _function(handler: object) -> object:
    while isinstance(handler, partial):
        handler = handler.func
    return handler
