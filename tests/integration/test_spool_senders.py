"""`eoq.Spool`: what it writes, what it refuses, and what remains if the sender is killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import eoq
from eoq.spool.sender import Spool
from tests.cases import one_in
from tests.integration.spools import arrivals, waiting
from tests.support import clean_environment, eventually, running_daemon


def test_all_options_arrive(folder: Path) -> None:
    own = eoq.Spool(folder / "spool")
    assert own.send("q", {"a": "ü"}, id="m", headers={"b": "\n"}, priority=-3, group="g") == "m"
    generated = own.send("q", b"\x00\xff\n")
    own.send("later", "x", id="delay", delay=3600)
    own.send("later", "x", id="at", at=time.time() + 3600)
    own.send("later", "x", id="over", ttl=0.01)
    own.send("later", "x", id="lives", ttl=3600)
    begun = time.time()
    eventually(lambda: time.time() > begun + 0.01)
    assert (folder / "spool").stat().st_mode & 0o777 == 0o700
    for file in (folder / "spool" / "q").iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
    with running_daemon("--spool", str(folder / "spool")) as daemon, eoq.connect(daemon.socket) as client:
        eventually(lambda: waiting(folder / "spool", "q") == [] == waiting(folder / "spool", "later"))
        second, first = arrivals(client, "q", 2)
        assert (first.id, first.json(), first.priority, first.group) == ("m", {"a": "ü"}, -3, "g")
        assert first.headers == {"content-type": "application/json", "b": "\n"}
        assert (second.id, second.body, second.headers) == (generated, b"\x00\xff\n", {})
        for id in ("delay", "at"):
            due = client.ask("show", queue="later", id=id)["message"]["due_at"]
            assert 3500 < due - time.time() <= 3600, "from when it was left"
        expired = client.result("later", "over", wait=20)
        assert expired is not None and expired.outcome == "expired"
        assert abs(client.show("later", "lives")["expires_at"] - begun - 3600) < 60, "to the way to the daemon"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"queue": "a/b"}, eoq.InvalidRequest),
        ({"queue": ".."}, eoq.InvalidRequest),
        ({"body": b"x" * (1024 * 1024 + 1)}, eoq.MessageTooLarge),
        ({"body": {1, 2}}, eoq.InvalidRequest),
        ({"id": "\n"}, eoq.InvalidRequest),
        ({"id": ""}, eoq.InvalidRequest),
        ({"headers": {"a": 1}}, eoq.InvalidRequest),
        ({"headers": {"a": "\ud800"}}, eoq.InvalidRequest),
        ({"headers": {"a": "x" * 70_000}}, eoq.MessageTooLarge),
        ({"priority": 2**40}, eoq.InvalidRequest),
        ({"delay": -1}, eoq.InvalidRequest),
        ({"delay": 1, "at": 1}, eoq.InvalidRequest),
        ({"ttl": 0}, eoq.InvalidRequest),
    ],
)
def test_the_sender_refuses_what_a_daemon_would_refuse_and_writes_nothing(
    folder: Path, options: dict[str, object], kind: type[eoq.EoqError]
) -> None:
    with pytest.raises(kind):
        Spool(folder / "spool").send(**{"queue": "q", "body": "x", **options})  # type: ignore[arg-type] # on purpose
    with pytest.raises(kind):
        Spool(folder / "spool").send_many(
            str(options.get("queue", "q")),
            ["first", eoq.Outgoing(**{"body": "x", **{n: v for n, v in options.items() if n != "queue"}})]  # type: ignore[arg-type] # on purpose
            if "queue" not in options
            else ["x"],
        )
    assert list(folder.iterdir()) == []


def test_the_sender_does_not_write_through_links_or_files(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "spool").mkdir()
    (folder / "spool" / "q").symlink_to(folder / "elsewhere")
    (folder / "spool" / "file").write_text("")
    for queue in ("q", "file"):
        with pytest.raises(eoq.Forbidden, match=queue):
            Spool(folder / "spool").send(queue, "x")
    with pytest.raises(eoq.Forbidden):
        Spool(folder / "spool" / "file").send("q", "x")
    with pytest.raises(eoq.Forbidden):
        Spool(folder / "no" / "parent").send("q", "x")
    assert list((folder / "elsewhere").iterdir()) == []


def test_new_folders_and_files_get_the_permissions_of_the_spool(folder: Path) -> None:
    (folder / "spool").mkdir()
    (folder / "spool").chmod(0o2770)
    old_mask = os.umask(0o077)
    try:
        Spool(folder / "spool").send("q", "x")
    finally:
        os.umask(old_mask)
    assert (folder / "spool" / "q").stat().st_mode & 0o7777 == 0o2770
    (file,) = (folder / "spool" / "q").iterdir()
    assert file.stat().st_mode & 0o777 == 0o640


@pytest.mark.slow
def test_the_names_of_files_keep_the_order_of_messages(folder: Path) -> None:
    own = Spool(folder / "spool")
    for batch in range(3):
        own.send_many("q", [f"{batch * 200 + number}" for number in range(200)])
    files = sorted((folder / "spool" / "q").iterdir())
    assert [file.read_text().splitlines()[1] for file in files] == [f"{number}" for number in range(600)]


@pytest.mark.slow
def test_a_spool_is_used_by_a_parent_and_its_child_at_once(folder: Path) -> None:
    """Both go on with the order and the random numbers that the parent had at the fork."""
    spool = Spool(folder / "spool")
    spool.send("q", "before")
    child = os.fork()
    try:
        ids = spool.send_many("q", ["x"] * 20)
    finally:
        if child == 0:
            (folder / "ids").write_text(" ".join(ids))
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    ids += (folder / "ids").read_text().split()
    assert len(set(ids)) == 40
    assert len(list((folder / "spool" / "q").iterdir())) == 41


def test_a_file_is_synced_before_its_rename_and_the_folders_after_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def syncing(descriptor: int) -> None:
        fsync(descriptor)
        found = os.fstat(descriptor)
        files = [path for path in (folder, *folder.rglob("*")) if os.path.samestat(path.lstat(), found)]
        done.extend("sync " + re.sub(r"[0-9a-f-]{30,}", "FILE", path.name) for path in files)

    def renaming(*arguments: Any, **options: Any) -> None:
        rename(*arguments, **options)
        done.append("rename")

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "rename", renaming)
    Spool(folder / "spool").send_many("q", ["a", "b"])
    assert done == [f"sync {folder.name}", "sync .FILE.eoq.tmp", "sync .FILE.eoq.tmp"] + ["rename"] * 2 + [
        "sync q",
        "sync spool",
    ]


DYING = """
import os, sys
import eoq
point, spool = sys.argv[1:]
def plant(name, real):
    def planted(*arguments, **options):
        if point == f"before {name}":
            os._exit(9)
        outcome = real(*arguments, **options)
        if point == f"after {name}":
            os._exit(9)
        return outcome
    setattr(os, name, planted)
for name in ("mkdir", "fdopen", "fchmod", "fsync", "rename"):
    plant(name, getattr(os, name))
eoq.Spool(spool).send("q", "whole", id="m")
"""
BEFORE = (
    "before mkdir",
    "after mkdir",
    "before fdopen",
    "after fdopen",
    "before fsync",
    "after fsync",
    "before rename",
)


@pytest.mark.first_by_default
@pytest.mark.parametrize("point", one_in(2, ["after rename", *BEFORE[::-1]]))
def test_a_killed_sender_leaves_the_whole_message_or_none(folder: Path, point: str) -> None:
    spool = folder / "spool"
    spool.mkdir()
    ran = subprocess.run(
        [sys.executable, "-c", DYING, point, str(spool)], env=clean_environment(), cwd=folder, check=False
    )
    assert ran.returncode == 9
    ready = [file for file in spool.glob("q/[!.]*") if file.suffix != ".tmp"]
    assert [file.read_text() for file in ready] == ([] if point in BEFORE else ['{"id":"m"}\nwhole'])
    # A repeated send with the same id is stored once.
    assert Spool(spool).send("q", "whole", id="m") == "m"
    with running_daemon("--spool", str(spool)) as daemon, eoq.connect(daemon.socket) as client:
        eventually(lambda: waiting(spool, "q") == [])
        assert [message.id for message in arrivals(client, "q", 1)] == ["m"]
