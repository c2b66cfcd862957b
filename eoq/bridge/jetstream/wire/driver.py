"""nats-py, the driver of NATS, and what is said without it."""

from __future__ import annotations

from ....errors import InvalidRequest


class NatsMissing(InvalidRequest, ImportError):
    """nats-py is not installed, or cannot be loaded."""


_failure: ImportError | None = None
try:
    import nats
    import nats.aio.client
    import nats.aio.msg
    import nats.errors
except ImportError as error:
    _failure = error
if _failure is not None:
    raise NatsMissing(
        f"NATS JetStream needs the driver nats-py, which cannot be loaded ({_failure}): pip install 'eoq[jetstream]'"
    )

__all__ = ["NatsMissing", "nats"]
