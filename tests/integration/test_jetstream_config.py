"""Streams in the daemon's configuration, and how a machine proves to the server who it is."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import eoq
from eoq.daemon.config.loader import load
from tests.integration.bridges import bridge
from tests.integration.streams import take
from tests.nats_server import NatsServer, running_nats, why_no_nats
from tests.support import PATIENCE, Daemon, eventually, running_daemon


def _bridges(daemon: Daemon) -> list[dict[str, Any]]:
    ran = daemon.shell().run("eoq bridges --json")
    assert ran.status == 0, ran.errors
    return ran.rows


@pytest.mark.slow
def test_a_daemon_forwards_and_ingests_what_its_file_says(folder: Path, nats_server: NatsServer) -> None:
    url, config = nats_server.url(), folder / "eoq.toml"
    config.write_text(
        f'[[forward]]\nqueue = "q"\nto = "{url}"\npartitions = 4\n'
        f'[[ingest]]\nqueue = "back"\nfrom_env = "STREAM"\npartitions = 2\npartition = "1"\nas = "till-3"\n'
    )
    environment = {"EOQ_CONFIG": str(config), "STREAM": url}
    with running_daemon(environment=environment) as daemon, eoq.connect(daemon.socket) as client:
        client.send("q", "x", id="m")
        eventually(lambda: client.show("q", "m")["state"] == "forwarded", PATIENCE)
        eventually(lambda: nats_server.api("CONSUMER.INFO.PAY.eoq-back-1").get("num_waiting"), PATIENCE)
        nats_server.ask("PAY.back.1", b"hello", {"Nats-Msg-Id": "order-18"})  # CRC-32: partition 1 of 2
        (message,) = client.receive("back", wait=PATIENCE)
        assert (message.id, message.text) == ("order-18", "hello")
        eventually(lambda: [row["moved"] for row in _bridges(daemon)] == [1, 1], PATIENCE)
        eventually(lambda: [row["there"] for row in _bridges(daemon)] == [1, 0], PATIENCE)
        forward, back = _bridges(daemon)
        assert (forward["place"], forward["claimed"], forward["error"]) == (url, 0, None)
        assert (back["claimed"], back["here"], back["error"]) == (0, 1, None)
        claims = bridge(daemon, f"ingest back --from {url} --claims").text
        assert claims.splitlines()[1].startswith("back  partition 1  till-3  claimed 0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[forward]]\nqueue = "q"\nto = "nats://h:4222"', "nats://HOST:4222/STREAM"),
        ('[[forward]]\nqueue = "q"\nto = "nats://u:secret@h/PAY"', "has a user or a token"),
        ('[[forward]]\nqueue = "q"\nto = "nats://secret@h/PAY"', "has a user or a token"),
        ('[[forward]]\nqueue = "q"\nto = "tls://u:sec/ret@h/PAY"', "has a user or a token"),
        ('[[forward]]\nqueue = "q"\nto = "nats://h/PAY"\npartitions = 0', "partitions"),
        ('[[ingest]]\nqueue = "q"\nfrom = "nats://h/PAY"\npartition = "a"', "partition"),
        ('[[ingest]]\nqueue = "q"\nfrom = "postgresql:///x"\npartition = "0"', "PostgreSQL has no partitions"),
        ('[[forward]]\nqueue = "q"\nto = "postgresql:///x"\npartitions = 2', "PostgreSQL has no partitions"),
    ],
)
def test_what_is_wrong_with_a_stream_is_said_without_its_secrets(folder: Path, text: str, words: str) -> None:
    file = folder / "eoq.toml"
    file.write_text(text)
    with pytest.raises(eoq.InvalidRequest) as raised:
        load(file)
    assert words in str(raised.value)
    assert "sec" not in str(raised.value)


def test_partitions_are_refused_for_postgresql() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(eoq.InvalidRequest, match="only a stream of NATS has partitions"):
        eoq.Bridge.forward("q", "postgresql:///shop", partitions=2)


@pytest.mark.slow
def test_a_user_and_a_password_come_from_the_environment_and_stay_there() -> None:
    reason = why_no_nats()
    if reason is not None:
        pytest.skip(reason)
    users = 'authorization { users = [ { user: "till", password: "s3c@ret" } ] }'
    with running_nats(users) as server, running_daemon() as daemon, eoq.connect(daemon.socket) as client:
        client.send("q", "x", id="m")
        url = f"nats://till:s3c%40ret@{server.place}/PAY"
        ran = bridge(daemon, f"forward q --to {url} --until-empty")
        assert (ran.status, "--to-env" in ran.errors, "s3c" in ran.errors) == (65, True, False)
        for wrong in (server.url(), url.replace("s3c", "no")):
            ran = daemon.shell().run("eoq forward q --to-env STREAM --until-empty", STREAM=wrong)
            assert (ran.status, "does not let this user in" in ran.errors) == (77, True), ran.errors
        ran = daemon.shell().run("eoq forward q --to-env STREAM --until-empty", STREAM=url)
        assert ran.status == 0, ran.errors
        said = ran.errors + str(client.show("q", "m"))
        assert server.url() in said
        assert "s3c" not in said


@pytest.mark.slow
def test_tls_with_an_authority_of_ones_own(folder: Path) -> None:
    reason = why_no_nats() or (None if shutil.which("openssl") else "no openssl, which makes the certificates")
    if reason is not None:
        pytest.skip(reason)
    own = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *own]
    subprocess.run([*made, "-keyout", folder / "key.pem", "-out", folder / "ca.pem"], check=True, capture_output=True)
    tls = f'tls {{ cert_file: "{folder}/ca.pem", key_file: "{folder}/key.pem" }}'
    with running_nats(tls) as server, running_daemon() as daemon, running_daemon() as other:
        with eoq.connect(daemon.socket) as client:
            client.send("q", "x", id="m")
        strange = bridge(daemon, f"forward q --to tls://{server.place}/PAY --until-empty")
        assert (strange.status, "certificate verify failed" in strange.errors) == (75, True), strange.errors
        url = f"tls://{server.place}/PAY?ca={folder}/ca.pem"
        for machine, command in ((daemon, "forward q --to"), (other, "ingest q --from")):
            ran = bridge(machine, f"{command} '{url}' --until-empty")
            assert ran.status == 0, ran.errors
        assert [message.id for message in take(other)] == ["m"]
        ran = bridge(daemon, f"ingest q --from '{url}x' --until-empty")
        assert (ran.status, "files of TLS" in ran.errors) == (65, True), ran.errors
    with running_nats() as plain, running_daemon() as daemon:
        with eoq.connect(daemon.socket) as client:
            client.send("q", "x", id="m")
        for user in ("", "till:s3cret@"):
            url = f"tls://{user}{plain.place}/PAY"
            ran = daemon.shell().run("eoq forward q --to-env STREAM --until-empty", STREAM=url)
            assert (ran.status, "secure connection not available" in ran.errors) == (75, True), ran.errors
