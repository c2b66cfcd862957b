"""The parameters of the SQL of ``eoq apply``."""

from __future__ import annotations

import json
from typing import Any

from eoq.message import Delivery


def parameters(message: Delivery) -> dict[str, Any]:
    """Return the parameters of the statements: the fields of a message, by their names in SQL."""
    try:
        body: str | bytes = message.body.decode()
    except UnicodeDecodeError:
        body = message.body
    return {
        "id": message.id,
        "queue": message.queue,
        "attempt": message.attempt,
        "enqueued_at": message.enqueued_at,
        "body": body,
        "headers": json.dumps(dict(message.headers), ensure_ascii=False),
        "group": message.group,
    }
