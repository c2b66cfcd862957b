"""Prometheus' text format, version 0.0.4: families of samples.

Where OpenTelemetry's conventions for messaging have a name for a metric or an attribute, it is used, as Prometheus
writes it: `messaging.destination.name` is `messaging_destination_name`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Final, Literal

from ...measures import BOUNDS, Histogram

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SYSTEM: Final = {"messaging_system": "eoq"}
"""The labels of the metrics whose names are OpenTelemetry's."""
GZIP: Final = 16 + zlib.MAX_WBITS
"""The format of gzip, to zlib."""
_ESCAPED: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})


def label_text(labels: Mapping[str, str]) -> str:
    """Return labels as they stand behind the name of a sample."""
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in labels.items()) + "}"


def head(name: str, kind: Literal["counter", "gauge", "histogram"], help: str) -> str:
    """Return the two lines that begin a family. ``help`` is one line without backslashes."""
    return f"# HELP {name} {help}\n# TYPE {name} {kind}\n"


def sample(name: str, value: float, labels: Mapping[str, str] | None = None) -> str:
    """Return the line of one sample."""
    return f"{name}{label_text(labels or {})} {value}\n"


def single(name: str, kind: Literal["counter", "gauge"], help: str, value: float | None) -> str:
    """Return a family of one sample without labels; nothing where the value is not known."""
    return "" if value is None else head(name, kind, help) + sample(name, value)


def labelled(
    name: str, kind: Literal["counter", "gauge"], help: str, label: str, values: Iterable[tuple[str, float]]
) -> str:
    """Return a family with one sample for each value of a label."""
    return head(name, kind, help) + "".join(sample(name, value, {label: text}) for text, value in values)


def distribution(name: str, help: str, histogram: Histogram, labels: Mapping[str, str] | None = None) -> str:
    """Return the family of a histogram of seconds."""
    labels = labels or {}
    lines = [head(name, "histogram", help)]
    for bound, below in zip(BOUNDS, histogram.cumulative(), strict=True):
        lines.append(sample(f"{name}_bucket", below, {**labels, "le": repr(bound)}))
    lines.append(sample(f"{name}_bucket", histogram.count, {**labels, "le": "+Inf"}))
    lines.append(sample(f"{name}_sum", round(histogram.sum, 6), labels))
    lines.append(sample(f"{name}_count", histogram.count, labels))
    return "".join(lines)


def pack(text: bytes) -> bytes:
    """Return a text in gzip's format. Such texts one behind the other are one as well."""
    packing = zlib.compressobj(1, zlib.DEFLATED, GZIP)
    return packing.compress(text) + packing.flush()


def unpack(packed: bytes) -> bytes:
    """Return what was packed."""
    return zlib.decompress(packed, GZIP)
