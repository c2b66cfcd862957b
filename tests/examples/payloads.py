"""Webhook payloads like GitHub's, made from a seed: nested objects, URLs, escapes, many scripts, 5 to 30 KB each."""

from __future__ import annotations

import json
import random
import uuid
from typing import Any, Final, NamedTuple

EVENTS: Final = ("push", "issues", "issue_comment", "pull_request", "check_run", "release", "star", "workflow_job")
WORDS: Final = (
    *("merge", "fix", "the", "flaky", "test", "naïve", "Ünïcode", "テスト", "修正", "🚀", "ß", "مرحبا", "null", "%00"),
    *("\\n", '"quoted"', "tab\there", "line\nfeed", "</script>", "\u2028", "\x7f", "a/b#c?d=e&f"),
)
SMALLEST: Final = 5_000
LARGEST: Final = 30_000


class Webhook(NamedTuple):
    """One delivery, as GitHub sends it over HTTP."""

    delivery: str
    event: str
    body: bytes


def webhooks(seed: int, count: int) -> list[Webhook]:
    """Return ``count`` deliveries, each with its own id. The same seed gives the same deliveries."""
    rng = random.Random(seed)
    return [_webhook(rng) for _ in range(count)]


def _webhook(rng: random.Random) -> Webhook:
    event = rng.choice(EVENTS)
    payload: dict[str, Any] = {
        "action": rng.choice(("opened", "closed", "edited")),
        "repository": _repository(rng),
        "sender": _user(rng),
        "commits": [],
    }
    wanted = rng.randint(SMALLEST, LARGEST - 3_000)
    escaped = rng.random() < 0.5
    body = b""
    while len(body) < wanted:
        payload["commits"].append(_commit(rng))
        body = json.dumps(payload, ensure_ascii=escaped).encode()
    return Webhook(str(uuid.UUID(int=rng.getrandbits(128), version=4)), event, body)


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(WORDS, k=words))


def _user(rng: random.Random) -> dict[str, Any]:
    login = f"user-{rng.randrange(10_000)}"
    links = ("followers", "gists", "starred", "subscriptions", "organizations", "repos", "received_events")
    return {
        "login": login,
        "id": rng.randrange(2**31),
        **{f"{link}_url": f"https://api.github.com/users/{login}/{link}{{/other}}" for link in links},
        "site_admin": rng.random() < 0.1,
    }


def _repository(rng: random.Random) -> dict[str, Any]:
    return {
        "id": rng.randrange(2**31),
        "full_name": f"octo/{rng.choice('abcdef')}-{rng.randrange(100)}",
        "owner": _user(rng),
        "description": rng.choice((None, _text(rng, 8))),
        "size": rng.random() * 1e6,
        "topics": rng.choices(WORDS, k=3),
    }


def _commit(rng: random.Random) -> dict[str, Any]:
    return {
        "id": f"{rng.getrandbits(160):040x}",
        "message": _text(rng, rng.randint(3, 60)),
        "author": _user(rng),
        "added": [f"src/{_text(rng, 1)}.py" for _ in range(rng.randint(0, 3))],
    }
