"""The spool of a real daemon: which files are stored, how soon and in which order, and which are rejected."""

from __future__ import annotations

import json
import os
import shutil
import socket as sockets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

import eoq
from eoq.daemon.services.spool.spool_reader import SWEEP_SECONDS
from tests.integration.idle import is_idle
from tests.integration.spools import arrivals, put, rejected, texts, waiting
from tests.support import HAS_PROC, PATIENCE, Daemon, eventually, running_daemon, short_folder

SOON: Final = SWEEP_SECONDS / 2
"""Seconds within which a wake-up stores a file, also on a loaded machine. The sweep is rarer."""
MEBIBYTE: Final = 1024 * 1024


@pytest.fixture(scope="module")
def spool() -> Iterator[Path]:
    """The spool of the file's daemon; each test has a queue of its own."""
    with short_folder() as folder:
        yield folder / "spool"


@pytest.fixture(scope="module")
def shared_daemon(spool: Path) -> Iterator[Daemon]:
    """The file's daemon, with a spool."""
    with running_daemon("--spool", str(spool)) as daemon:
        yield daemon


@pytest.fixture
def client(shared_daemon: Daemon) -> Iterator[eoq.Client]:
    """A client of the file's daemon."""
    with eoq.connect(shared_daemon.socket) as client:
        yield client


# ── what is stored ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("body", [b"", b"text", b"a\n\nb\n", bytes(range(256)), b"x" * MEBIBYTE], ids=range(5))
def test_the_body_of_a_message_is_exactly_the_content_of_its_file(
    spool: Path, client: eoq.Client, queue: str, body: bytes
) -> None:
    put(spool, queue, "NAME", body)
    (message,) = arrivals(client, queue, 1)
    assert message.body == body
    assert message.headers == {}
    eventually(lambda: waiting(spool, queue) == [])


def test_a_file_is_stored_at_once_also_in_a_new_folder(spool: Path, client: eoq.Client, queue: str) -> None:
    for turn in range(5):
        for name in (queue[:100], f"{queue[:100]}-{turn}"):
            began = time.monotonic()
            put(spool, name, "x", f"{turn}")
            (message,) = client.receive(name, wait=20)
            assert time.monotonic() - began < SOON
            assert message.text == f"{turn}"
            message.ack()


def test_the_same_name_again_is_a_new_message(spool: Path, client: eoq.Client, queue: str) -> None:
    for turn in range(5):
        put(spool, queue, "report", f"{turn}")
        assert texts(arrivals(client, queue, 1)) == [f"{turn}"]


def test_files_are_left_alone_until_they_are_ready(spool: Path, client: eoq.Client, queue: str) -> None:
    here = spool / queue
    here.mkdir()
    for name in (".hidden", "unfinished.tmp", ".hidden.eoq"):
        (here / name).write_text(name)
    (here / ".folder").mkdir()
    put(spool, queue, "ready", "ready")
    assert texts(arrivals(client, queue, 1)) == ["ready"]
    assert {path.name for path in here.iterdir()} == {
        ".hidden", "unfinished.tmp", ".hidden.eoq", ".folder", ".taking"
    }  # fmt: skip
    (here / "unfinished.tmp").rename(here / "finished")
    assert texts(arrivals(client, queue, 1)) == ["unfinished.tmp"]


def test_options_are_on_the_first_line(spool: Path, client: eoq.Client, queue: str) -> None:
    options = {"id": "order-17", "headers": {"a": "ü\n"}, "priority": 5, "group": "g", "delay": 0, "at": None}
    put(spool, queue, "x.eoq", json.dumps(options).encode() + b"\n{}\n\xff\n")
    (message,) = arrivals(client, queue, 1)
    assert (message.id, message.body, message.priority, message.group) == ("order-17", b"{}\n\xff\n", 5, "g")
    assert message.headers == {"a": "ü\n"}
    put(spool, queue, "later.eoq", '{"id": "later", "delay": 3600}\nlater')
    eventually(lambda: waiting(spool, queue) == [])
    assert client.ask("show", queue=queue, id="later")["message"]["state"] == "delayed"


def test_without_an_id_it_gets_one_and_the_same_id_is_stored_once(spool: Path, client: eoq.Client, queue: str) -> None:
    for name in "abc":
        put(spool, queue, f"{name}.eoq", '{"id": "same"}\nbody')
    put(spool, queue, "d.eoq", "{}\nother")
    put(spool, queue, "e", "other")
    eventually(lambda: waiting(spool, queue) == [])
    ids = [message.id for message in arrivals(client, queue, 3)]
    assert ids.count("same") == 1
    assert len(set(ids)) == 3


def test_unusual_file_names_are_accepted(spool: Path, client: eoq.Client, queue: str) -> None:
    names = ["a b", "new\nline", "ü", "-rf", "*", "x" * 255, f"{'y' * 250}.eoq", os.fsdecode(b"\xff\xfe")]
    for name in names:
        put(spool, queue, name, "{}\n")
    assert sorted(texts(arrivals(client, queue, len(names)))) == ["", *["{}\n"] * 7]
    eventually(lambda: waiting(spool, queue) == [])


def test_a_file_that_is_linked_into_place_is_stored(spool: Path, client: eoq.Client, queue: str) -> None:
    """Senders that must not overwrite a file do this: link(2), then unlink(2)."""
    here = spool / queue
    here.mkdir()
    (here / ".new").write_text("linked")
    (here / "x").hardlink_to(here / ".new")
    put(spool, queue, "y", "other")  # the reader scans the folder between the two
    assert texts(arrivals(client, queue, 1)) == ["other"]
    (here / ".new").unlink()
    assert texts(arrivals(client, queue, 1)) == ["linked"]
    assert not (here / ".rejected").exists()


def test_messages_of_many_senders_are_stored_once_and_in_order(spool: Path, client: eoq.Client, queue: str) -> None:
    def send(sender: int) -> None:
        own = eoq.Spool(spool)
        for number in range(50):
            own.send(queue, f"{sender}-{number}", group=str(sender))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(send, range(4)))
    eventually(lambda: waiting(spool, queue) == [])
    found: list[str] = []
    while messages := client.receive(queue, 1000):
        found += texts(messages)
        client.ack_many([(message, None) for message in messages])
    for sender in range(4):
        assert [one for one in found if one.startswith(f"{sender}-")] == [f"{sender}-{n}" for n in range(50)]
    assert len(found) == 200


# ── many ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1100, *(pytest.param(many, marks=pytest.mark.slow) for many in (5100, 30_000))])
def test_thousands_of_files_at_the_start_are_stored_once_and_in_order(folder: Path, count: int) -> None:
    spool = folder / "spool"
    (spool / "q").mkdir(parents=True)
    for number in range(count):
        (spool / "q" / f"{number:06d}").write_text(f"{number}")
    put(spool, "zzz", "x", "another queue")
    with running_daemon("--spool", str(spool)) as daemon, eoq.connect(daemon.socket) as client:
        eventually(lambda: waiting(spool, "q") == [], PATIENCE * 5)
        found: list[eoq.Message] = []
        while messages := client.receive("q", 1000, lease=3600):
            found += messages
        assert [message.text for message in found] == [str(number) for number in range(count)]
        assert len({message.id for message in found}) == count
        assert texts(arrivals(client, "zzz", 1)) == ["another queue"]
        eventually(lambda: client.ask("status")["spool_taken"] == count + 1)
        status = client.ask("status")
        assert (status["spool"], status["spool_rejected"]) == (str(spool), 0)


# ── what is rejected ────────────────────────────────────────────────────────────────────────────────────────


def _link(path: Path) -> None:
    (path.parent.parent / "outside").write_text("secret")
    path.symlink_to("../outside")


def _hard_link(path: Path) -> None:
    outside = path.parent.parent / f"{path.parent.name}.outside"
    outside.write_text("secret")
    path.hardlink_to(outside)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with sockets.socket(sockets.AF_UNIX) as socket:
            socket.bind(path.name)
    finally:
        os.chdir(here)


def _folder(path: Path) -> None:
    made = path.with_name(".folder")
    made.mkdir()
    (made / "inside").write_text("kept")
    made.rename(path)


def _large(path: Path) -> None:
    with path.with_name(".large").open("wb") as file:
        file.truncate(2**40)
    path.with_name(".large").rename(path)


def _content(content: bytes) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.with_name(".content").write_bytes(content)
        path.with_name(".content").rename(path)

    return write


REFUSED = {
    "link": ("x", _link, "symbolic link"),
    "dangling link": ("x", lambda path: path.symlink_to("nowhere"), "symbolic link"),
    "hard link": ("x", _hard_link, "hard link"),
    "pipe": ("x", os.mkfifo, "a pipe"),
    "socket": ("x", _socket, "a socket"),
    "folder": ("x", _folder, "a folder"),
    "too large": ("x", _large, "limit"),
    "one byte too many": ("x", _content(b"x" * (MEBIBYTE + 1)), "limit"),
    "one byte too many behind options": ("x.eoq", _content(b"{}\n" + b"x" * (MEBIBYTE + 1)), "limit"),
    "too large with options": ("x.eoq", _large, "limit"),
    "no options": ("x.eoq", _content(b""), "first line"),
    "no end of options": ("x.eoq", _content(b"{}"), "first line"),
    "endless options": ("x.eoq", _content(b'{"id":"' + b"x" * MEBIBYTE), "first line"),
    "no JSON": ("x.eoq", _content(b"id: a\nbody"), "not JSON"),
    "deep JSON": ("x.eoq", _content(b"[" * 200_000 + b"\nbody"), "not JSON"),
    "no UTF-8": ("x.eoq", _content(b'{"id": "\xff"}\nbody'), "not JSON"),
    "no object": ("x.eoq", _content(b"[]\nbody"), "not a JSON object"),
    "unknown": ("x.eoq", _content(b'{"prioritty": 1}\nbody'), "'prioritty' is not known"),
    "a body": ("x.eoq", _content(b'{"body": "x"}\nbody'), "'body' is not known"),
    "a queue": ("x.eoq", _content(b'{"queue": "other"}\nbody'), "'queue' is not known"),
    "wrong": ("x.eoq", _content(b'{"delay": NaN}\nbody'), "delay"),
    "wrong time": ("x.eoq", _content(b'{"tried_at": "x"}\nbody'), "tried_at"),
    "half a character": ("x.eoq", _content(b'{"headers": {"a": "\\ud800"}}\nbody'), "invalid_request"),
    "large headers": ("x.eoq", _content(b'{"headers": {"a": "' + b"x" * 70_000 + b'"}}\nbody'), "headers"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.first_by_default
def test_a_file_that_cannot_be_stored_is_rejected_with_its_reason(
    spool: Path, client: eoq.Client, queue: str, case: str
) -> None:
    name, make, word = REFUSED[case]
    put(spool, queue, "before", "before")
    make(spool / queue / name)
    put(spool, queue, "z", "behind")
    assert word in rejected(spool, queue, name)
    assert sorted(texts(arrivals(client, queue, 2))) == ["before", "behind"]
    eventually(lambda: waiting(spool, queue) == [])
    if case == "folder":
        assert (spool / queue / ".rejected" / "x" / "inside").read_text() == "kept"
    for outside in spool.glob("*outside"):
        assert outside.read_text() == "secret"


def test_a_file_with_the_id_of_another_message_is_rejected_alone(spool: Path, client: eoq.Client, queue: str) -> None:
    client.send(queue, "first", id="taken")
    own = eoq.Spool(spool)
    messages: list[object] = [eoq.Outgoing(f"{number}", id=f"{number}") for number in range(20)]
    messages.insert(7, eoq.Outgoing("other", id="taken"))
    own.send_many(queue, messages)
    eventually(lambda: waiting(spool, queue) == [])
    assert texts(arrivals(client, queue, 21)) == ["first", *(f"{number}" for number in range(20))]
    (reason,) = (spool / queue / ".rejected").glob("*.reason")
    assert reason.read_text().startswith("id_conflict: ")
    assert reason.with_suffix("").read_text().endswith("\nother")


def test_rejected_files_are_not_overwritten(spool: Path, client: eoq.Client, queue: str) -> None:
    folder = spool / queue / ".rejected"
    for name, content in (("x.eoq", "1"), ("x.eoq", "2"), ("x.eoq.reason.eoq", "3"), ("y.eoq.reason", "fine")):
        put(spool, queue, name, content)
        eventually(lambda: waiting(spool, queue) == [])
    assert texts(arrivals(client, queue, 1)) == ["fine"]
    put(spool, queue, "y.eoq", "4")
    eventually(lambda: waiting(spool, queue) == [])
    contents = {path: path.read_text() for path in folder.iterdir()}
    assert sorted(text for text in contents.values() if "invalid" not in text) == ["1", "2", "3", "4"]
    for path, text in contents.items():
        if "invalid" not in text:
            assert contents[path.with_name(path.name + ".reason")].startswith("invalid_request: ")


def test_a_corrected_file_can_be_moved_back(spool: Path, client: eoq.Client, queue: str) -> None:
    put(spool, queue, "x.eoq", "oops")
    rejected(spool, queue, "x.eoq")
    bad = spool / queue / ".rejected" / "x.eoq"
    bad.write_text("{}\nmended")
    bad.rename(spool / queue / "x.eoq")
    assert texts(arrivals(client, queue, 1)) == ["mended"]


@pytest.mark.parametrize("name", ["a b", "ü", "-x", "x" * 129, "new\nline", os.fsdecode(b"\xff")])
def test_files_in_a_folder_that_is_not_a_queue_are_rejected(spool: Path, shared_daemon: Daemon, name: str) -> None:
    put(spool, name, "x", "where to?")
    assert "is no queue name" in rejected(spool, name, "x")
    assert (spool / name / ".rejected" / "x").read_text() == "where to?"


def test_links_to_folders_are_not_followed_and_other_queues_go_on(
    spool: Path, client: eoq.Client, shared_daemon: Daemon, queue: str, folder: Path
) -> None:
    """The spool has a queue that is a link, inner folders that are links, and a file without a queue."""
    own = [f"{queue[:90]}-{number}" for number in range(3)]
    (folder / "x").write_text("not ours")
    (spool / own[0]).symlink_to(folder)
    (spool / "loose").write_text("no queue")
    for name, inner in ((own[1], ".taking"), (own[2], ".rejected")):
        (spool / name).mkdir()
        (spool / name / inner).symlink_to(folder)
        put(spool, name, "x.eoq", "bad")
    put(spool, queue, "x", "fine")
    assert texts(arrivals(client, queue, 1)) == ["fine"]
    put(spool, own[2], "y", "fine as well")
    assert texts(arrivals(client, own[2], 1)) == ["fine as well"]
    words = (repr(own[0]), "'loose'", f"{own[1]}' cannot be used", "can be neither stored nor moved")
    eventually(lambda: all(word in shared_daemon.said for word in words), what=f"it says each of {words}")
    assert [path.name for path in folder.iterdir()] == ["x"]
    (spool / own[1] / ".taking").unlink()
    assert "first line" in rejected(spool, own[1], "x.eoq")


# ── what may have been stored already ───────────────────────────────────────────────────────────────────────


def _token(age: float) -> str:
    moment = f"{int((time.time() - age) * 1000):012x}"
    return f"{moment[:8]}-{moment[8:]}-7abc-8abc-0123456789ab"


def test_a_file_left_behind_is_stored_under_its_id_unless_the_id_may_be_forgotten(folder: Path) -> None:
    spool = folder / "spool"
    day = 86400.0
    tokens = {name: _token(age) for name, age in {"old": 6.1 * day, "young": 5.9 * day, "future": -day}.items()}
    for name, token in tokens.items():
        put(spool, "q/.taking", f"{token}.{name}", name)
    put(spool, "q/.taking", "foreign", "none of ours")
    for name, age in {"tried-old": 6.1 * day, "tried-young": 5.9 * day}.items():
        put(spool, "q", f"{name}.eoq", json.dumps({"id": name, "tried_at": time.time() - age}) + f"\n{name}")
    with running_daemon("--spool", str(spool)) as daemon, eoq.connect(daemon.socket) as client:
        found = {message.text: message.id for message in arrivals(client, "q", 3)}
        assert found == {"young": tokens["young"], "future": tokens["future"], "tried-young": "tried-young"}
        for name in ("old", "tried-old.eoq"):
            assert "stored twice" in rejected(spool, "q", name)
    assert waiting(spool, "q") == ["foreign"]


def test_the_retention_of_the_queue_decides_whether_a_file_is_too_old(folder: Path) -> None:
    spool = folder / "spool"
    (folder / "eoq.toml").write_text("[queues.short]\nretention = 100\n[queues.long]\nretention = 1000000\n")
    for queue in ("short", "long"):
        put(spool, f"{queue}/.taking", f"{_token(7 * 86400 + 1000)}.x" if queue == "long" else f"{_token(95)}.x", queue)
    with (
        running_daemon("--spool", str(spool), "--config", str(folder / "eoq.toml")) as daemon,
        eoq.connect(daemon.socket) as client,
    ):
        assert texts(arrivals(client, "long", 1)) == ["long"]
        assert "stored twice" in rejected(spool, "short", "x")


# ── the folder ──────────────────────────────────────────────────────────────────────────────────────────────


def test_a_new_spool_is_for_its_user_alone(folder: Path) -> None:
    with running_daemon("--spool", str(folder / "a" / "spool")):
        assert (folder / "a" / "spool").stat().st_mode & 0o777 == 0o700


def test_a_second_daemon_on_the_spool_does_not_start_and_names_the_first(
    spool: Path, shared_daemon: Daemon, folder: Path
) -> None:
    options = f"--db {folder}/other.db --socket {folder}/other --spool {spool}"
    ran = shared_daemon.shell().run(f"eoq daemon {options}")
    assert ran.status == 75
    assert f"{spool} is in use by the eoq daemon with pid {shared_daemon.pid}" in ran.errors


def test_a_replaced_spool_is_read_and_a_missing_one_is_logged(folder: Path) -> None:
    spool = folder / "spool"
    with running_daemon("--spool", str(spool)) as daemon, eoq.connect(daemon.socket) as client:
        put(spool, "q", "x", "before")
        assert texts(arrivals(client, "q", 1)) == ["before"]
        shutil.rmtree(spool)
        # If the last wake-up comes before the folder itself is gone, the sweep finds out.
        eventually(lambda: "cannot be used" in daemon.said, seconds=SWEEP_SECONDS + PATIENCE)
        assert client.send("q", "meanwhile").id
        assert texts(arrivals(client, "q", 1)) == ["meanwhile"]
        put(spool, "q", "x", "after")
        assert texts(arrivals(client, "q", 1)) == ["after"]
        ran = daemon.shell().run(f"eoq daemon --db {folder}/2.db --socket {folder}/2 --spool {spool}")
        assert ran.status == 75, "the new folder is locked as well"


@pytest.mark.slow
@pytest.mark.skipif(not HAS_PROC, reason="needs /proc")
def test_what_a_killed_sender_left_unfinished_is_removed_after_a_day(folder: Path) -> None:
    spool = folder / "spool"
    name = ".01796010270996532235-67c-aee6-62aca11b84ad.eoq.tmp"
    for queue in ("old", "young", "other"):
        put(spool, queue, "x", queue)
    old, young, other = spool / "old" / name, spool / "young" / name, spool / "other" / ".mine.eoq.tmp"
    two_days_ago = time.time() - 2 * 86400
    for path in (old, young, other):
        path.write_bytes(b'{"id":"half')
        if path is not young:
            os.utime(path, (two_days_ago, two_days_ago))
    with running_daemon("--spool", str(spool)) as daemon, eoq.connect(daemon.socket) as client:
        for queue in ("old", "young", "other"):
            assert texts(arrivals(client, queue, 1)) == [queue]
        eventually(lambda: not old.exists())
    assert young.exists() and other.exists()


@pytest.mark.slow
def test_an_idle_daemon_sleeps(spool: Path, shared_daemon: Daemon, client: eoq.Client, queue: str) -> None:
    put(spool, queue, "x")
    arrivals(client, queue, 1)
    eventually(lambda: is_idle(shared_daemon.pid), what="it sleeps")
