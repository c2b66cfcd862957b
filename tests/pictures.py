"""Make the pictures of the documents, from real runs: `eoq top`, and `eoq dashboard` in light and dark.

    python -m tests.pictures

A daemon, senders and workers run for a minute and a half. Meanwhile a browser and a terminal look. It needs Chromium,
and the extras ``top`` and ``dashboard``.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Final

import eoq
from tests.dashboard.browser import Tab, open_tab
from tests.dashboard.site import running_dashboard
from tests.support import Daemon, running_daemon

PICTURES: Final = Path(__file__).parents[1] / "eoq" / "docs" / "pictures"
SECONDS: Final = 90.0
"""How long the senders send before the pictures are taken, so that the charts have something to show."""
SIZE: Final = (1120, 640)
TERMINAL: Final = (96, 12)
FONTS: Final = re.compile(r"@font-face\s*\{.*?\}", re.DOTALL)
"""Fonts from elsewhere, which a picture in a document may not load."""


def main() -> None:
    """Run everything, and take the pictures at the end."""
    PICTURES.mkdir(exist_ok=True)
    logging.disable(logging.WARNING)  # the workers say what they give back
    stop = threading.Event()
    with running_daemon() as daemon:
        traffic = [threading.Thread(target=run, args=(daemon, stop)) for run in (*SENDERS, *WORKERS)]
        for thread in traffic:
            thread.start()
        try:
            with running_dashboard(daemon.socket) as site, open_tab() as tab:
                screen = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
                tab.ask("Emulation.setDeviceMetricsOverride", **screen)
                tab.ask("Emulation.setScrollbarsHidden", hidden=True)
                tab.ask("Page.navigate", url=site.url)
                asyncio.run(_watch_top(daemon))
                for theme in ("light", "dark"):
                    _picture(tab, theme)
        finally:
            stop.set()
            for thread in traffic:
                thread.join()
    for path in sorted(PICTURES.iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


async def _watch_top(daemon: Daemon) -> None:
    """Look with `eoq top` for a while, and keep what it shows."""
    async with eoq.connect_async(daemon.socket) as client:
        app = import_module("eoq.cli.top.app").TopApp(client, "")
        async with app.run_test(size=TERMINAL):
            await asyncio.sleep(SECONDS)  # the senders need it
            drawn = FONTS.sub("", app.export_screenshot(title="eoq top"))
    (PICTURES / "top.svg").write_text("\n".join(line.rstrip() for line in drawn.splitlines() if line.strip()) + "\n")


def _picture(tab: Tab, theme: str) -> None:
    tab.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    tab.sees("payments")
    shot = tab.ask("Page.captureScreenshot", format="png", optimizeForSpeed=False)
    (PICTURES / f"dashboard-{theme}.png").write_bytes(base64.b64decode(shot["data"]))


# ── what there is to see ────────────────────────────────────────────────────────────────────────────────────


def _send(queue: str, rate: Callable[[float], float], daemon: Daemon, stop: threading.Event) -> None:
    """Send messages to a queue. ``rate`` says how many a second, after so many seconds."""
    began, number = time.monotonic(), 0
    with eoq.connect(daemon.socket) as client:
        while not stop.wait(BEAT):
            count = round(rate(time.monotonic() - began) * BEAT)
            messages = [eoq.Outgoing({"cents": n}, id=f"{queue}-{n}") for n in range(number, number + count)]
            client.send_many(queue, messages)
            number += count


def _work(queue: str, rate: float, daemon: Daemon, stop: threading.Event) -> None:
    """Handle messages of a queue, about so many a second. Some are given back, and some can never be handled."""

    def handle(message: eoq.Message) -> str:
        stop.wait(THREADS / rate)
        number = int(message.id.rpartition("-")[2])
        if queue == "mail" and number % 97 == 5:
            raise eoq.Reject("550 no such address")
        if queue == "webhooks" and number % 11 == 0 and message.attempt == 1:
            raise eoq.Retry(5, "the other side answered 503")
        return "done"

    with eoq.connect(daemon.socket) as client:
        client.work(queue, handle, stop=stop, concurrency=THREADS)


def _other(daemon: Daemon, stop: threading.Event) -> None:
    """Make a queue that is paused, one whose messages wait for their time, and a schedule."""
    with eoq.connect(daemon.socket) as client:
        client.pause("exports")
        client.send_many("exports", [eoq.Outgoing("export", id=f"export-{n}") for n in range(120)])
        client.send_many("reminders", [eoq.Outgoing("pay", id=f"reminder-{n}", delay=3600) for n in range(60)])
        client.schedule("nightly", "reports", "daily", cron="15 2 * * *")
        client.run_schedule("nightly")
        stop.wait()


BEAT: Final = 0.25
"""Seconds between two sends of a sender."""
THREADS: Final = 4
"""Handlers of a worker at once."""
SENDERS: Final = (
    partial(_send, "payments", lambda at: 70 + 60 * math.sin(at / 9)),
    partial(_send, "mail", lambda at: 30 + 26 * math.sin(at / 6)),
    partial(_send, "webhooks", lambda at: 60 if at % 30 < 8 else 8),
    _other,
)
WORKERS: Final = (partial(_work, "payments", 80), partial(_work, "mail", 34), partial(_work, "webhooks", 26))

if __name__ == "__main__":
    main()
