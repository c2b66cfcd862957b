"""The dashboard over HTTP: who may use it, what it shows of hostile messages, and what it changes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import eoq
from eoq.testing import PrivateDaemon, private_daemon
from tests.dashboard.site import Site, running_dashboard
from tests.support import PATIENCE, clean_environment

HOSTILE = "<img src=x onerror=alert(1)>\u202egpj.exe\x1b[2J\0" + "a" * 100_000


@pytest.fixture(scope="module")
def daemon() -> Iterator[PrivateDaemon]:
    with private_daemon() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def site(daemon: PrivateDaemon) -> Iterator[Site]:
    with running_dashboard(daemon.socket) as site:
        yield site


def _make_dead(daemon: PrivateDaemon, queue: str, *ids: str) -> None:
    for id in ids:
        daemon.client.send(queue, "x", id=id)
        (message,) = daemon.client.receive(queue)
        message.reject("no such account")


def test_only_the_token_lets_in(site: Site) -> None:
    for path in ("/", "/?token=wrong", site.path, f"{site.path}events", "/page.js", "/%ff?token=%ff"):
        assert site.request("GET", path)[0] == 401, path
    assert site.request("GET", site.path, {"Cookie": "eoq-dashboard=wrong"})[0] == 401
    assert site.request("GET", "/queues", {"Cookie": site.cookie})[0] == 401  # another path does not do
    attributes = {part.strip().lower() for part in site.set_cookie.split(";")[1:]}
    assert attributes == {"httponly", "samesite=strict", f"path={site.path}".lower()}


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:80", "Origin": "http://evil.example:80"},  # as a browser asks after DNS rebinding
        {"Host": "127.0.0.1.evil.example:80"},
        {"Host": "evil.example@127.0.0.1"},
        {"Host": "127.0.0.1:x/../evil"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_another_site_is_refused(site: Site, daemon: PrivateDaemon, method: str, headers: dict[str, str]) -> None:
    path = f"{site.path}act" if method == "POST" else site.path
    body = '{"do":"pause","name":"of-another-site"}' if method == "POST" else None
    status, _, content = site.request(method, path, site.own_headers(**headers), body)
    assert (status, content[:5]) == (403, b"eoq: ")
    assert not any(row["name"] == "of-another-site" for row in daemon.client.queues())


def test_an_action_needs_an_origin_json_and_a_bounded_body(site: Site) -> None:
    act = f"{site.path}act"
    body = '{"do":"pause","name":"q"}'
    without = {name: value for name, value in site.own_headers().items() if name != "Origin"}
    assert site.request("POST", act, without, body)[0] == 403
    assert site.request("POST", act, site.own_headers(**{"Content-Type": "text/plain"}), body)[0] == 400
    for bad in (b"{", b"[]", b"\xff", b'{"do":"pause"}', b'{"do":"x","name":"q"}', b'{"do":"\\ud800","name":"q"}'):
        assert site.request("POST", act, site.own_headers(), bad)[0] == 400, bad
    assert site.request("POST", act, site.own_headers(), b" " * 70_000)[0] == 400
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert site.request(method, site.path, site.own_headers())[0] == 405
    assert site.request("GET", act, {"Cookie": site.cookie})[0] == 405


def test_every_answer_keeps_scripts_and_frames_out(site: Site) -> None:
    for path, status in ((site.path, 200), (f"{site.path}page.js", 200), ("/", 401), (f"{site.path}nope", 404)):
        answer, headers, content = site.request("GET", path, {"Cookie": site.cookie})
        assert answer == status
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert (headers["x-frame-options"], headers["cache-control"]) == ("DENY", "no-store")
        assert b"://" not in content.replace(b"http://www.w3.org/2000/svg", b"")  # nothing from outside
    _, _, script = site.request("GET", f"{site.path}page.js", {"Cookie": site.cookie})
    assert not [word for word in (b"innerHTML", b"insertAdjacent", b"document.write", b"eval(") if word in script]


def test_hostile_texts_are_bounded_and_plain(site: Site, daemon: PrivateDaemon) -> None:
    daemon.client.send("hostile", HOSTILE, id="<b>", headers={"<i>": "\u202e"})
    status, found = site.get("messages", queue="hostile")
    assert status == 200
    (row,) = found["messages"]
    assert (len(row["body"]), row["body_cut"]) == (160, len(HOSTILE))
    _, found = site.get("message", queue="hostile", id="<b>")
    message = found["message"]
    assert message["body"].startswith("<img src=x onerror=alert(1)>·gpj.exe·[2J·aaa") and len(message["body"]) == 65_536
    assert message["headers"] == {"<i>": "·"}
    assert found["why"][0]["reason"] == "no_receive"
    _, headers, _ = site.request("GET", f"{site.path}messages?queue=hostile", {"Cookie": site.cookie})
    assert headers["content-type"].startswith("application/json")


def test_an_id_is_found_in_every_queue(site: Site, daemon: PrivateDaemon) -> None:
    for queue in ("found-1", "found-2"):
        daemon.client.send(queue, "x", id="wanted")
    _, found = site.get("search", id="wanted")
    assert [one["queue"] for one in found["found"]] == ["found-1", "found-2"]
    assert site.get("search", id="wanted", queue="found-2")[1]["found"][0]["state"] == "ready"
    assert site.get("search", id="unknown") == (200, {"found": []})
    for bad in ("", "a\0b", "x" * 201, "\u202e"):
        assert site.get("search", id=bad)[0] == 400
    assert site.get("search", id="wanted", queue="no/queue")[0] == 400
    assert site.get("message", queue="found-1", id="unknown")[0] == 404
    assert site.get("messages", queue="no/queue")[0] == 400


def test_queues_are_paused_and_resumed_live(site: Site, daemon: PrivateDaemon) -> None:
    daemon.client.send("live", "x")
    with site.events(queue="live") as events:
        assert next(events)["queues"][0]["ready"] == 1
        assert site.act("pause", "live") == (200, {"done": "The queue live is paused."})
        state = next(state for state in events if state["queues"][0]["paused"])
        assert state["trouble"] is None and len(state["queues"][0]["samples"]) >= 2
    assert site.act("resume", "live")[0] == 200
    assert daemon.client.receive("live")


def test_dead_letters_are_redriven_and_dropped(site: Site, daemon: PrivateDaemon) -> None:
    _make_dead(daemon, "dead", "d-1", "d-2", "d-3")
    _, found = site.get("messages", queue="dead", state="dead")
    assert {one["error"] for one in found["messages"]} == {"no such account"}
    assert site.act("redrive", "dead", ids=["d-1", "d-9"])[1]["done"] == "Redriven: 1. No dead letters any more: 1."
    assert site.act("drop", "dead", ids=["d-2"])[0] == 400  # not confirmed
    assert site.act("drop", "dead", confirmed=True)[0] == 400  # not said which
    assert site.act("drop", "dead", ids=["d-2"], confirmed=True)[1] == {"done": "Dropped: 1."}
    # What has failed since the list was read is not dropped unseen.
    daemon.client.receive("dead")[0].ack()
    daemon.clock.move(5)
    seen_at = site.get("messages", queue="dead", state="dead")[1]["seen_at"]
    daemon.clock.move(5)
    _make_dead(daemon, "dead", "d-4")
    assert site.act("drop", "dead", seen_at=seen_at, confirmed=True)[1] == {"done": "Dropped: 1."}
    assert set(daemon.dead_letters("dead")) == {"d-4"}


def test_schedules_are_paused_resumed_and_run(site: Site, daemon: PrivateDaemon) -> None:
    daemon.client.schedule("nightly", "reports", "x", cron="0 3 * * *")
    assert site.act("schedule-pause", "nightly")[0] == 200
    assert site.get("schedules", text="night")[1]["schedules"][0]["paused"]
    assert site.act("schedule-resume", "nightly")[0] == 200
    for _ in range(2):  # the browser repeats what it has no answer of
        assert site.act("schedule-run", "nightly", id="once")[1]["done"] == "The schedule nightly has sent once."
    assert [message.id for message in daemon.client.receive("reports", limit=9)] == ["once"]
    assert site.act("schedule-run", "unknown")[0] == 404


def test_pages_are_bounded(site: Site, daemon: PrivateDaemon) -> None:
    for number in range(30):
        daemon.client.pause(f"many-{number:02}")
    for page, count in ((0, 25), (1, 5), (7, 0)):
        with site.events(text="many-", page=page) as events:
            state = next(state for state in events if state["count"] == 30)
            assert len(state["queues"]) == count


@pytest.mark.slow
def test_a_daemon_that_goes_away_is_said_and_found_again() -> None:
    with private_daemon() as daemon:
        daemon.client.send("mail", "x")
        with running_dashboard(daemon.socket) as site, site.events() as events:
            assert next(events)["trouble"] is None
            daemon.stop()
            assert "daemon" in next(state for state in events if state["trouble"])["trouble"]
            daemon.start()
            assert next(state for state in events if not state["trouble"])["queues"][0]["name"] == "mail"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.0.1", "::", "example.com"])  # noqa: S104 # it is refused
def test_other_hosts_than_loopback_are_refused(host: str) -> None:
    from eoq.dashboard.serving import listen

    with pytest.raises(eoq.InvalidRequest, match="on this machine only"):
        listen(host, 0)


def test_without_the_extra_a_sentence_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "starlette.py").write_text("raise ImportError('no starlette')")
    done = subprocess.run(
        [sys.executable, "-m", "eoq.cli", "dashboard"],
        env=clean_environment(PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path])),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'eoq[dashboard]'" in done.stderr
