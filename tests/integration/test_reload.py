"""The daemon reads its configuration again on SIGHUP and when the file changes. All of it counts, or nothing."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import eoq
from eoq.daemon.config.loader import load
from eoq.daemon.config.model import Config, LiveConfig
from eoq.daemon.config.reload import Reloader
from tests.cases import one_in
from tests.integration.idle import is_idle
from tests.support import HAS_PROC, PATIENCE, Daemon, clean_environment, eventually, running_daemon

linux_only = pytest.mark.skipif(not HAS_PROC, reason="reads /proc")

FEW = "[queues.q]\nmax_attempts = 1\n"
MANY = "[queues.q]\nmax_attempts = 9\n"


class Configured:
    """A daemon and its configuration file."""

    def __init__(self, daemon: Daemon, path: Path) -> None:
        self.daemon = daemon
        self.path = path

    def replace(self, text: str) -> None:
        """Rename another file into place, as editors do."""
        new = self.path.with_name(".new")
        new.write_text(text)
        new.rename(self.path)

    @property
    def read_at(self) -> float:
        return float(self.daemon.ask(op="status")["config_read_at"])

    @property
    def error(self) -> str | None:
        error: str | None = self.daemon.ask(op="status")["config_error"]
        return error

    def wait_until_said(self, text: str, times: int = 1) -> None:
        eventually(lambda: self.daemon.said.count(text) >= times, what=f"it says {text!r}")

    def attempts(self) -> int:
        """Return how often a message of the queue ``q`` is delivered before it is dead, 9 at most."""
        with eoq.connect(self.daemon.socket) as client:
            id = client.send("q", b"").id
            for attempt in range(1, 10):
                (message,) = client.receive("q")
                message.nack(0)
                if client.ask("show", queue="q", id=id)["message"]["state"] == "dead":
                    return attempt
        raise AssertionError("it does not die")


@contextmanager
def _configured(folder: Path, text: str = MANY, *options: str) -> Iterator[Configured]:
    path = folder / "eoq.toml"
    path.write_text(text)
    with running_daemon("--config", str(path), *options) as daemon:
        yield Configured(daemon, path)


@pytest.fixture
def configured(folder: Path) -> Iterator[Configured]:
    """A daemon with the configuration `MANY`."""
    with _configured(folder) as configured:
        yield configured


# ── when it is read ─────────────────────────────────────────────────────────────────────────────────────────


def _in_place(configured: Configured) -> None:
    configured.path.write_text(FEW)


def _renamed(configured: Configured) -> None:
    configured.replace(FEW)


def _removed_first(configured: Configured) -> None:
    configured.path.unlink()
    configured.wait_until_said("cannot be read")
    configured.path.write_text(FEW)


@pytest.mark.first_by_default
@pytest.mark.parametrize("change", [_in_place, _renamed, _removed_first])
def test_a_changed_file_takes_effect_at_once(configured: Configured, change: Callable[[Configured], None]) -> None:
    assert configured.attempts() == 9
    change(configured)
    configured.wait_until_said(" → 1")  # the daemon may have seen the file while it was still empty
    assert configured.attempts() == 1
    # A second change takes effect too: the file is still watched.
    configured.replace("[queues.q]\nmax_attempts = 2\n")
    configured.wait_until_said("queues.q.max_attempts: 1 → 2")
    assert configured.attempts() == 2


def test_a_replaced_link_takes_effect_at_once(folder: Path) -> None:
    """Kubernetes and similar deployments replace the link to a folder, and may keep the old folder."""
    for name, text in (("one", MANY), ("two", FEW)):
        (folder / "at" / name).mkdir(parents=True)
        (folder / "at" / name / "eoq.toml").write_text(text)
    mounted = folder / "mounted"
    mounted.mkdir()
    (mounted / "..data").symlink_to("../at/one")
    path = mounted / "eoq.toml"
    path.symlink_to("..data/eoq.toml")
    with running_daemon("--config", str(path)) as daemon:
        configured = Configured(daemon, path)
        assert configured.attempts() == 9
        (mounted / "..new").symlink_to("../at/two")
        (mounted / "..new").rename(mounted / "..data")
        configured.wait_until_said("queues.q.max_attempts: 9 → 1")
        assert configured.attempts() == 1
        (folder / "at" / "two" / "eoq.toml").write_text(MANY)
        configured.wait_until_said("queues.q.max_attempts: 1 → 9")


def test_sighup_reads_the_file_and_always_logs_the_outcome(configured: Configured) -> None:
    before = configured.read_at
    for times in (1, 2):
        configured.daemon.signal(signal.SIGHUP)
        configured.wait_until_said("read again; nothing has changed", times)
    assert configured.read_at > before


def test_a_file_with_the_same_settings_is_not_logged(configured: Configured) -> None:
    before = configured.read_at
    configured.replace("# a comment\n" + MANY)
    eventually(lambda: configured.read_at > before)
    assert "read again" not in configured.daemon.said


def test_a_file_that_is_still_being_written_is_not_reported_as_wrong(configured: Configured) -> None:
    reported = 0
    for number in range(10, 100):
        before = configured.daemon.said.count("wrong")
        longest = 0.0
        with configured.path.open("w") as file:
            for part in ("[queues.", "q]\nmax_", "attempts =", f" {number}", "\n"):
                begun = time.monotonic()
                file.write(part)
                file.flush()
                time.sleep(0.01)  # a slow writer
                longest = max(longest, time.monotonic() - begun)
        configured.wait_until_said(f" → {number}")
        if longest < 0.05:  # otherwise this machine was too slow for the claim
            if configured.daemon.said.count("wrong") == before:
                return
            reported += 1  # the daemon may have been too slow for it as well, but not again and again
            assert reported < 3


def test_sighup_without_a_configuration_is_harmless(daemon: Daemon) -> None:
    daemon.signal(signal.SIGHUP)
    eventually(lambda: "nothing to read again" in daemon.said)
    status = daemon.ask(op="status")
    assert (status["config"], status["config_read_at"], status["config_error"]) == (None, None, None)


@linux_only
def test_an_idle_daemon_with_a_configuration_sleeps(configured: Configured) -> None:
    configured.replace(FEW)
    configured.wait_until_said("queues.q.max_attempts: 9 → 1")
    eventually(lambda: is_idle(configured.daemon.pid), what="it sleeps")


# ── what is wrong changes nothing ───────────────────────────────────────────────────────────────────────────


@pytest.mark.first_by_default
@pytest.mark.parametrize(
    ("text", "word"),
    one_in(
        2,
        [
            ("[queues.q]\nmax_attempts = 1\n[queues.q", "not TOML"),
            ("[queues.q]\nmax_attempts = 1\nretentoin = 1", "do you mean `retention`"),
            ('[queues.q]\nmax_attempts = 1\n[[relay]]\npath = "x.db"\n[[bind]]\ntopic = "t"', "needs `queue`"),
            ('[queues.q]\nmax_attempts = 1\n[daemon]\ndb = ""', "daemon.db"),
        ],
    ),
)
def test_nothing_of_a_wrong_file_takes_effect_until_it_is_corrected(
    configured: Configured, text: str, word: str
) -> None:
    configured.replace(text)
    assert word in eventually(lambda: configured.error or "")
    assert configured.attempts() == 9
    before = configured.read_at  # not earlier: the daemon reads the first file again when it begins to watch it
    # The error is logged once, however often the file is written, and again on SIGHUP.
    configured.replace(text)
    configured.daemon.signal(signal.SIGHUP)
    configured.wait_until_said("the former settings stay", 2)
    assert configured.daemon.said.count("the former settings stay") <= 2
    assert configured.read_at == before
    assert "config_error" in configured.daemon.shell().run("eoq status").text
    configured.replace(MANY)
    eventually(lambda: configured.error is None)
    configured.wait_until_said("nothing has changed")
    configured.replace(FEW)
    configured.wait_until_said("queues.q.max_attempts: 9 → 1")
    assert "x.db" not in configured.daemon.said


def _remove(path: Path) -> None:
    path.unlink()


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _make_huge(path: Path) -> None:
    path.write_bytes(b"#" * (1024 * 1024 + 1))


def _make_random(path: Path) -> None:
    path.write_bytes(os.urandom(5000) + b"\xff")


@pytest.mark.first_by_default
@pytest.mark.parametrize("spoil", one_in(2, [_remove, _make_folder, _make_pipe, _make_huge, _make_random]))
def test_a_file_that_cannot_be_read_changes_nothing(configured: Configured, spoil: Callable[[Path], None]) -> None:
    spoil(configured.path)
    configured.daemon.signal(signal.SIGHUP)
    assert str(configured.path) in eventually(lambda: configured.error or "")
    assert configured.attempts() == 9
    if configured.path.is_dir():
        configured.path.rmdir()
    configured.replace(FEW)
    configured.wait_until_said("queues.q.max_attempts: 9 → 1")
    assert configured.error is None


# ── what can be changed ─────────────────────────────────────────────────────────────────────────────────────


def test_a_shorter_retention_takes_effect_before_the_next_round(configured: Configured) -> None:
    with eoq.connect(configured.daemon.socket) as client:
        client.send("q", b"", id="m")
        client.receive("q")[0].ack()
        # The first round is over, and the next one is minutes away.
        eventually(lambda: configured.daemon.ask(op="status")["ok"])
        configured.replace("[queues.q]\nretention = 0.5\n")
        configured.wait_until_said("queues.q.retention: not set → 0.5")
        eventually(lambda: client.result("q", "m") is None)


def test_a_new_retry_delay_takes_effect_at_once(configured: Configured) -> None:
    with eoq.connect(configured.daemon.socket) as client:
        client.send("q", b"", id="m")
        client.receive("q")[0].nack()
        (message,) = client.receive("q")
        message.nack(0)
        configured.replace("[queues.q]\nretry_first = 3600\n")
        configured.wait_until_said("queues.q.retry_first: not set → 3600")
        client.send("q", b"", id="n", priority=1)
        (message,) = client.receive("q")
        message.nack()
        assert client.ask("show", queue="q", id="n")["message"]["state"] == "delayed"


def test_the_order_of_sections_is_a_change(folder: Path) -> None:
    with _configured(folder, '[queues.q]\nmax_attempts = 1\n[queues."*"]\nmax_attempts = 2\n') as configured:
        assert configured.attempts() == 1
        configured.replace('[queues."*"]\nmax_attempts = 2\n[queues.q]\nmax_attempts = 1\n')
        configured.wait_until_said("the order of sections")
        assert configured.attempts() == 2


def test_a_flag_still_takes_precedence_over_the_file(folder: Path) -> None:
    with _configured(folder, MANY, "--max-attempts", "3") as configured:
        assert configured.attempts() == 3
        configured.replace(FEW)
        configured.wait_until_said("queues.q.max_attempts: 9 → 1")
        assert configured.attempts() == 3


def test_paths_of_the_daemon_wait_for_a_restart_and_other_settings_do_not(configured: Configured) -> None:
    configured.replace('[daemon]\ndb = "other.db"\n' + FEW)
    configured.wait_until_said("takes effect after a restart")
    assert 'daemon.db: not set → "other.db"' in configured.daemon.said
    assert configured.attempts() == 1
    assert not (configured.path.parent / "other.db").exists()


def _open(daemon: Daemon, kind: str) -> list[str]:
    """Return the open files of a daemon whose names begin with ``kind``. The names of sockets are not used again."""
    names = []
    for link in Path(f"/proc/{daemon.pid}/fd").iterdir():
        with suppress(OSError):
            names.append(str(link.readlink()))
    return [name for name in names if name.startswith(kind)]


def _sockets(daemon: Daemon) -> set[str]:
    return set(_open(daemon, "socket:"))


def _watched_folders(daemon: Daemon) -> int:
    count = 0
    for info in Path(f"/proc/{daemon.pid}/fdinfo").iterdir():
        with suppress(OSError):
            count += info.read_text().count("inotify wd:")
    return count


@linux_only
def test_relays_start_and_end_and_the_others_are_not_disturbed(folder: Path) -> None:
    def config(*names: str) -> str:
        return MANY + "".join(f'[[relay]]\npath = "{name}/app.db"\n' for name in names)

    for name in "abc":
        (folder / name).mkdir()
    databases = {name: sqlite3.connect(folder / name / "app.db") for name in "abc"}
    outboxes = {name: eoq.Outbox(database) for name, database in databases.items()}

    def put(name: str, text: str) -> None:
        with databases[name]:
            outboxes[name].send("sent", text)

    with _configured(folder, config("a", "b")) as configured, eoq.connect(configured.daemon.socket) as client:

        def arrived() -> str:
            (message,) = client.receive("sent", wait=PATIENCE)
            message.ack()
            return message.text

        put("a", "from a")
        assert arrived() == "from a"
        alone = _sockets(configured.daemon)
        put("b", "from b")
        assert arrived() == "from b"
        both = _sockets(configured.daemon)
        assert len(both) == len(alone) + 2, "a connection has two ends"

        configured.replace(config("a", "c"))
        configured.wait_until_said('[[relay]] path = "b/app.db": removed')
        assert '[[relay]] path = "c/app.db": added' in configured.daemon.said
        put("c", "from c")
        assert arrived() == "from c"
        eventually(lambda: not (both - alone) & _sockets(configured.daemon), what="the connection of b ends")
        assert alone <= _sockets(configured.daemon), "the relay of a began anew"
        eventually(lambda: _watched_folders(configured.daemon) == 3, what="it watches the configuration, a and c")
        put("b", "from b, later")
        put("a", "from a, later")
        assert arrived() == "from a, later"

        configured.replace(config("a", "b", "c"))
        assert arrived() == "from b, later"
        assert client.receive("sent") == []
    for database in databases.values():
        database.close()


# ── signals, and faults inside ──────────────────────────────────────────────────────────────────────────────


@linux_only
@pytest.mark.slow
def test_sighup_never_kills_a_daemon_that_starts_or_stops(folder: Path) -> None:
    (folder / "eoq.toml").write_text(MANY)
    paths = ["--db", folder / "eoq.db", "--socket", folder / "s", "--config", folder / "eoq.toml"]
    with (folder / "err").open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "eoq.cli", "daemon", *map(str, paths)],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=clean_environment(),
            cwd=folder,
        )

    def withstands() -> bool:
        ignored = Path(f"/proc/{process.pid}/status").read_text().partition("\nSigIgn:")[2].split()[0]
        return bool(int(ignored, 16) & 1 << (signal.SIGHUP - 1))

    with process:
        try:
            # Before that only Python starts, and eoq has not run.
            eventually(withstands)
            assert process.stdout is not None
            while not select.select([process.stdout], [], [], 0.0005)[0]:
                process.send_signal(signal.SIGHUP)
            assert process.stdout.readline().startswith(b"ready")
            process.terminate()
            deadline = time.monotonic() + PATIENCE
            while process.poll() is None and time.monotonic() < deadline:
                process.send_signal(signal.SIGHUP)
                time.sleep(0.0005)  # so that it has time to stop
            assert process.poll() == 0, (folder / "err").read_text()
        finally:
            process.kill()
    assert "Traceback" not in (folder / "err").read_text()


def test_a_listener_that_fails_stops_neither_the_others_nor_the_next_reload(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = folder / "eoq.toml"
    path.write_text(MANY)

    async def run() -> None:
        live = LiveConfig(load(path))
        reloader = Reloader(path, live)
        told: asyncio.Queue[tuple[Config, Config]] = asyncio.Queue()

        def fail(_old: Config, _new: Config) -> None:
            raise ZeroDivisionError

        reloader.listeners += [fail, lambda old, new: told.put_nowait((old, new))]
        task = asyncio.create_task(reloader.run())
        for text in (FEW, MANY):
            before = live.config
            path.write_text(text)
            reloader.ask()
            old, new = await asyncio.wait_for(told.get(), PATIENCE)
            assert (old, new) == (before, live.config)
            assert new == load(path)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert caplog.text.count("could not apply") == 2


def test_a_longer_retention_does_not_lengthen_the_time_for_resends(folder: Path) -> None:
    """The time for resends gets shorter at once with the retention, and never longer while the relay runs."""
    from eoq.daemon.services.relays import Relays

    def config(retention: int, *names: str) -> Config:
        path = folder / "eoq.toml"
        path.write_text(
            f"[queues.q]\nretention = {retention}\n" + "".join(f'[[relay]]\npath = "{name}"\n' for name in names)
        )
        return load(path)

    async def run() -> list[float]:
        relays = Relays(folder / "none", folder)
        seen = []
        for retention in (700, 70, 7000):
            relays.follow(Config(), config(retention, "a"))
            ((relay, _),) = relays._running.values()
            seen.append(relay.resend_within)
        relays.follow(Config(), config(7000, "a", "b"))
        seen.extend(relay.resend_within for relay, _ in relays._running.values())
        await relays.stop()
        return seen

    assert asyncio.run(run()) == [600, 60, 60, 60, 60]


def test_the_log_has_the_old_and_the_new_value(folder: Path) -> None:
    with _configured(folder, '[queues."mail.*"]\nretention = 604800\n') as configured:
        configured.replace('[queues."mail.*"]\nretention = 86400\n[storage]\nmin_free_bytes = 0\n')
        configured.wait_until_said('queues."mail.*".retention: 604800 → 86400')
        configured.wait_until_said("storage.min_free_bytes: not set → 0")
