"""What a proof has found: how many crash points it tried, and the first difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import EoqError


@dataclass(frozen=True, slots=True)
class Point:
    """A crash point of one message.

    ``source`` says who sees it: ``statement`` (the handler's own process), ``write`` (the kernel, by ptrace) or
    ``moment`` (the clock). ``number`` counts from 1 within a source, and ``place`` describes it.
    """

    source: str
    number: int
    place: str
    after: float = 0.0
    """Of a moment: seconds from the begin of the run."""

    def __str__(self) -> str:
        return f"{self.source} {self.number}: {self.place}"


@dataclass(frozen=True, slots=True)
class Difference:
    """How the effect of a message that was killed and redelivered differs from its effect without a kill."""

    message: str
    """The id of the message."""
    place: str
    """Where the handler was killed; "without a kill" where no kill was needed to see it."""
    text: str

    def __str__(self) -> str:
        return f"message {self.message!r}, {self.place}: {self.text}"


@dataclass(slots=True)
class Report:
    """The outcome of a proof. ``method`` says how the crash points were found."""

    method: str
    messages: int = 0
    points: int = 0
    second_kills: int = 0
    """How many redeliveries were killed as well."""
    difference: Difference | None = None
    not_compared: Sequence[str] = field(default_factory=list)
    """The columns that differ without kills as well, such as times, as ``table.column``."""

    @property
    def ok(self) -> bool:
        """Whether no difference was found."""
        return self.difference is None

    def __str__(self) -> str:
        plural = "" if self.points == 1 else "s"
        lines = [f"{self.points:,} crash point{plural}, {'0 differences' if self.ok else '1 difference'}"]
        if self.difference is not None:
            lines.append(str(self.difference))
        if self.not_compared:
            lines.append(f"not compared, because they differ without a kill as well: {', '.join(self.not_compared)}")
        if self.second_kills:
            lines.append(f"second kills, of the redelivery: {self.second_kills:,}")
        lines.append(f"crash points: {self.method}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the report as the fields of a JSON object."""
        found = self.difference
        return {
            "ok": self.ok,
            "messages": self.messages,
            "points": self.points,
            "second_kills": self.second_kills,
            "differences": 0 if found is None else 1,
            "difference": None
            if found is None
            else {"message": found.message, "place": found.place, "text": found.text},
            "not_compared": list(self.not_compared),
            "method": self.method,
        }


class ProofFailed(AssertionError):
    """Raised by `prove`: the effects of the handler are not exactly once. ``report`` says where."""

    def __init__(self, report: Report) -> None:
        self.report = report
        super().__init__(str(report))


class CannotProve(EoqError):
    """Raised where there is nothing that could be proved: the command uses the file itself and not the copy, say."""

    exit_status = 65
