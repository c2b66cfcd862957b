"""What `drain` has done: each run of the handler, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the handler. A redelivered message that the inbox knew counts as one: it was acked without a run."""

    id: str
    attempt: int
    outcome: str
    """``done``, ``retried`` or ``rejected``; ``lost`` where the message could not be settled."""
    result: bytes | None = None
    error: BaseException | None = None
    """What the handler has raised."""


@dataclass(slots=True)
class Drained:
    """All runs of one `drain`, in their order."""

    runs: list[Run] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def done(self) -> list[str]:
        """The ids of the messages that were done, in their order."""
        return self._ids("done")

    @property
    def retried(self) -> list[str]:
        """The ids of the messages that were given back, once for each time."""
        return self._ids("retried")

    @property
    def rejected(self) -> list[str]:
        """The ids of the messages that were rejected."""
        return self._ids("rejected")

    @property
    def errors(self) -> list[BaseException]:
        """What the handler has raised, in its order."""
        return [run.error for run in self.runs if run.error is not None]

    def _ids(self, outcome: str) -> list[str]:
        return [run.id for run in self.runs if run.outcome == outcome]
