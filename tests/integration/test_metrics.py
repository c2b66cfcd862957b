"""Metrics: Prometheus' text format, from the command, both clients, and over HTTP where the configuration says so."""

from __future__ import annotations

import gzip
import http.client
import re
import socket as sockets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

import pytest

import eoq
from eoq.daemon.measures import BOUNDS, Histogram
from eoq.daemon.services.monitoring.text import label_text
from tests.integration.clients import AnyClient
from tests.support import Daemon, eventually, free_port, running_daemon

SAMPLE: Final = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (-?[0-9.e+-]+)')


def _samples(text: str) -> dict[str, float]:
    """Return the samples of a text, and check its form: each family is one block, and no sample is there twice."""
    assert text.endswith("\n")
    samples: dict[str, float] = {}
    family, seen = "", set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert family not in seen, f"{family} is not one block"
            seen.add(family)
        elif line.startswith("# TYPE "):
            assert line.split()[2:] in ([family, "counter"], [family, "gauge"], [family, "histogram"])
        else:
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert re.fullmatch(rf"{family}(?:_bucket|_sum|_count)?", match[1])
            name = line.rpartition(" ")[0]
            assert name not in samples
            samples[name] = float(match[3])
    return samples


def test_the_metrics_have_each_queue_and_the_daemon(client: AnyClient, queue: str) -> None:
    client.send_many(queue, [eoq.Outgoing(id, id=id) for id in ("a", "b", "c")])
    client.send(queue, "a", id="a")
    message, other = client.receive(queue, 2)
    client.ack(message)
    client.reject(other)
    samples = _samples(client.metrics())
    mine = f'messaging_destination_name="{queue}"'
    assert samples[f'messaging_client_sent_messages_total{{{mine},messaging_system="eoq"}}'] == 3
    assert samples[f'messaging_client_consumed_messages_total{{{mine},messaging_system="eoq"}}'] == 2
    assert samples[f"eoq_queue_duplicates_total{{{mine}}}"] == 1
    assert samples[f'eoq_queue_messages{{{mine},state="ready"}}'] == 1
    assert samples[f'eoq_queue_messages{{{mine},state="dead"}}'] == 1
    assert samples[f'eoq_queue_messages_ended_total{{{mine},outcome="done"}}'] == 1
    assert samples[f"eoq_queue_consumers{{{mine}}}"] == 1
    assert samples[f"eoq_queue_oldest_message_seconds{{{mine}}}"] > 0
    assert samples['eoq_messages_total{event="sent"}'] >= 3
    assert samples["eoq_file_bytes"] > 0
    assert samples["eoq_queues_left_out"] == 0
    assert samples['eoq_commit_seconds_bucket{le="+Inf"}'] == samples["eoq_commit_seconds_count"] > 0
    buckets = [samples[f'eoq_commit_seconds_bucket{{le="{bound!r}"}}'] for bound in BOUNDS]
    assert buckets == sorted(buckets)


def test_a_label_is_escaped() -> None:
    assert label_text({"a": 'b"c\\d\ne'}) == '{a="b\\"c\\\\d\\ne"}'


def test_a_histogram_counts_times_at_its_bounds() -> None:
    histogram = Histogram()
    for seconds in (0.0, 0.00005, 0.00015, 1.0, 10_000.0):
        histogram.add(seconds)
    assert histogram.cumulative()[:2] == [2, 3]
    assert histogram.cumulative()[-1] == 4
    assert histogram.count == 5
    assert histogram.fields()["p50"] == 0.0002
    assert histogram.fields()["p99"] == BOUNDS[-1]
    assert len(histogram.fields()["buckets"]) == len(BOUNDS), "one time is above all bounds"
    several = Histogram()
    several.add_since([100.0, 90.0, 99.99995], 100.0)
    assert (several.count, several.cumulative()[0]) == (3, 2)
    assert several.fields()["buckets"][-1][1] == 3, "it ends where all are below"
    assert Histogram().fields() == {"count": 0, "sum": 0.0, "p50": None, "p99": None, "buckets": []}
    backwards = Histogram()
    backwards.add_since([200.0], 100.0)
    assert (backwards.cumulative()[0], backwards.sum) == (1, 0.0)


# ── HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def _daemon_listening(folder: Path, listen: str) -> Iterator[Daemon]:
    config = folder / "eoq.toml"
    config.write_text(f'[metrics]\nlisten = "{listen}"\n')
    with running_daemon("--config", str(config)) as daemon:
        eventually(lambda: "served on" in daemon.said)
        yield daemon


def _connect(port: int) -> sockets.socket:
    return sockets.create_connection(("127.0.0.1", port), timeout=20)


def _exchange(port: int, request: bytes) -> bytes:
    with _connect(port) as connection:
        connection.sendall(request)
        reply = b""
        while part := connection.recv(65536):
            reply += part
        return reply


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A port where a daemon answers."""
    port = free_port()
    with _daemon_listening(tmp_path_factory.mktemp("metrics"), f"127.0.0.1:{port}") as daemon:
        with eoq.connect(daemon.socket) as client:
            client.send("mail", "hi")
        yield port


def test_get_metrics_is_answered_with_the_whole_text(port: int) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", "/metrics")
        reply = connection.getresponse()
        assert (reply.status, reply.getheader("Content-Type")) == (200, "text/plain; version=0.0.4; charset=utf-8")
        samples = _samples(reply.read().decode())
    assert samples['eoq_queue_messages{messaging_destination_name="mail",state="ready"}'] == 1


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip", True), ("br, GZIP;q=0.5", True), ("gzip;q=0", False), ("gzip;q=0.0, *", False), ("identity", False)],
)
def test_who_takes_it_gets_the_text_packed(port: int, accepted: str, packed: bool) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=20)) as connection:
        connection.request("GET", "/metrics", headers={"Accept-Encoding": accepted})
        reply = connection.getresponse()
        assert reply.getheader("Content-Encoding") == ("gzip" if packed else None)
        body = reply.read()
    samples = _samples((gzip.decompress(body) if packed else body).decode())
    assert samples['eoq_queue_messages{messaging_destination_name="mail",state="ready"}'] == 1


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"405"),
        (b"GET /metrics\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400"),
        (b"GET /metrics HTTP/1.1\r\nHost: evil.example:9464\r\n\r\n", b"403"),
        (b"GET /metrics HTTP/1.1\r\nHost: localhost:1\r\nHost: evil.example\r\n\r\n", b"403"),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 20000 + b"\r\n\r\n", b"431"),
    ],
)
def test_any_other_request_is_refused(port: int, request_text: bytes, status: bytes) -> None:
    assert _exchange(port, request_text).startswith(b"HTTP/1.1 " + status)


def test_connections_that_say_nothing_do_not_keep_the_others_out(port: int) -> None:
    silent = [_connect(port) for _ in range(40)]
    try:
        assert _exchange(port, b"GET /metrics HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 200")
    finally:
        for connection in silent:
            connection.close()


def test_a_client_that_goes_on_the_way_does_not_matter(port: int) -> None:
    for _ in range(20):
        with _connect(port) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert connection.recv(1)
    assert _exchange(port, b"GET /metrics HTTP/1.1\r\n\r\n").endswith(b"0\r\n\r\n")


def test_a_unix_socket_serves_its_owner_alone_and_is_removed_at_the_end(folder: Path) -> None:
    with _daemon_listening(folder, "metrics.sock"):
        path = folder / "metrics.sock"
        assert path.stat().st_mode & 0o777 == 0o600
        with closing(sockets.socket(sockets.AF_UNIX)) as connection:
            connection.connect(str(path))
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: any\r\n\r\n")
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
    assert not path.exists()


def _is_refused(port: int) -> bool:
    try:
        _connect(port).close()
    except ConnectionRefusedError:
        return True
    return False


def test_where_to_listen_follows_the_configuration(folder: Path) -> None:
    first, second = free_port(), free_port()
    with _daemon_listening(folder, f"127.0.0.1:{first}") as daemon:
        (folder / "eoq.toml").write_text(f'[metrics]\nlisten = "127.0.0.1:{second}"\n')
        eventually(lambda: f"served on 127.0.0.1:{second}" in daemon.said)
        eventually(lambda: _is_refused(first))
        _connect(second).close()
        (folder / "eoq.toml").write_text("")
        eventually(lambda: _is_refused(second))  # soon after the daemon says that it has read the file again


def test_a_port_that_is_taken_is_logged_and_the_daemon_serves(folder: Path) -> None:
    with closing(sockets.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        (folder / "eoq.toml").write_text(f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
        with running_daemon("--config", str(folder / "eoq.toml")) as daemon:
            eventually(lambda: "not served on" in daemon.said)
            assert daemon.serves()


@pytest.mark.parametrize("listen", ["0.0.0.0:9464", "example.org:80", "127.0.0.1:0", "127.0.0.1:65536", "9464:", ""])
@pytest.mark.first_by_default
def test_nothing_but_loopback_is_accepted(alone: object, folder: Path, listen: str) -> None:
    from eoq.daemon.config.loader import load
    from eoq.daemon.config.problems import WrongConfig

    (folder / "eoq.toml").write_text(f'[metrics]\nlisten = "{listen}"\n')
    with pytest.raises(WrongConfig, match=r"metrics\.listen"):
        load(folder / "eoq.toml")
