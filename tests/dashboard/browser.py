"""A headless Chromium, driven over its pipe: JSON messages that end with NUL."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.support import eventually

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


PATIENT: Final = 120.0
"""Seconds until a wait for the browser fails the test. It starts slowly on a busy machine."""
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27}
"""Keys that do something by themselves, and their codes."""


class Tab:
    """One tab. Make it with `open_tab`."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._read = b""
        self._number = 0
        self._session: str | None = None
        self.errors: list[str] = []
        """What the browser has reported: exceptions of scripts, and what the policy has blocked."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command of the protocol, and return its result."""
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        os.write(
            self._commands,
            json.dumps({"id": self._number, "method": method, "params": params, **session}).encode() + b"\0",
        )
        while (message := self._next()).get("id") != self._number:
            if message.get("method") == "Runtime.exceptionThrown" or (
                message.get("method") == "Log.entryAdded"
                and message["params"]["entry"]["source"] in ("security", "javascript")
            ):
                self.errors.append(json.dumps(message["params"]))
        assert "error" not in message, message
        found: dict[str, Any] = message["result"]
        return found

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def sees(self, text: str) -> None:
        """Wait until the page shows a text."""
        eventually(lambda: text in (self.run("document.body ? document.body.innerText : ''") or ""), PATIENT, what=text)

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS.get(key, 0)}
        self.ask("Input.dispatchKeyEvent", type="keyDown", text=text or {"Enter": "\r"}.get(key, ""), **code)
        self.ask("Input.dispatchKeyEvent", type="keyUp", **code)

    def press_until(self, key: str, reached: str, most: int = 60) -> None:
        """Press a key until an expression is true in the page."""
        for _ in range(most):
            if self.run(reached):
                return
            self.press(key)
        raise AssertionError(f"{most} times {key}, and not {reached}")

    def frames(self) -> list[str]:
        """Return the addresses of the frames in the page. One that was refused has that of an error page."""
        tree = self.ask("Page.getFrameTree")["frameTree"]
        return [child["frame"].get("unreachableUrl") or child["frame"]["url"] for child in tree.get("childFrames", [])]

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENT
        while b"\0" not in self._read:
            assert select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))[0], "no answer"
            self._read += os.read(self._answers, 1 << 20)
        line, _, self._read = self._read.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def open_tab(*more: str) -> Iterator[Tab]:
    """Run a browser with one tab and without any data of its user. ``more`` are flags of it."""
    commands_read, commands = os.pipe()
    answers, answers_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # The browser reads commands from the descriptor 3, and writes to 4.
        moved = f'exec "$@" 3<&{commands_read} 4>&{answers_write}'
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
        process = subprocess.Popen(
            [
                "bash",
                "-c",
                moved,
                "bash",
                CHROMIUM,
                *flags,
                f"--user-data-dir={folder}",
                "--window-size=1200,900",
                *more,
            ],
            pass_fds=(commands_read, answers_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=Path(folder),
        )
        os.close(commands_read)
        os.close(answers_write)
        try:
            yield Tab(commands, answers)
        finally:
            os.close(commands)
            process.kill()
            process.wait()
            os.close(answers)
