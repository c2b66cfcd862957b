"""Tests of programs that use eoq: a private daemon, a clock that the test moves, and a proof of exactly-once effects.

    from eoq.testing import private_daemon, prove

With pytest, the fixture ``eoq_daemon`` is there as soon as eoq is installed. Each name is loaded when it is first used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # without an import of `typing`: each run of pytest imports this file
if TYPE_CHECKING:
    from typing import Any

    from .clock import MovableClock as MovableClock
    from .daemon import PrivateDaemon as PrivateDaemon
    from .daemon import private_daemon as private_daemon
    from .drained import Drained as Drained
    from .drained import Run as Run
    from .effects import assert_processed as assert_processed
    from .messages import Settlement as Settlement
    from .messages import make_async_message as make_async_message
    from .messages import make_message as make_message
    from .messages import settlements as settlements
    from .proof.proving import prove as prove
    from .proof.report import CannotProve as CannotProve
    from .proof.report import ProofFailed as ProofFailed
    from .proof.report import Report as Report

_HOMES = {
    "clock": ("MovableClock",),
    "daemon": ("PrivateDaemon", "private_daemon"),
    "drained": ("Drained", "Run"),
    "effects": ("assert_processed",),
    "messages": ("Settlement", "make_async_message", "make_message", "settlements"),
    "proof.proving": ("prove",),
    "proof.report": ("CannotProve", "ProofFailed", "Report"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*(name for names in _HOMES.values() for name in names)]  # noqa: PLE0604 # strings, see above


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'eoq.testing' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
