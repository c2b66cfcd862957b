"""``eoq check``, ``eoq why`` and ``eoq metrics`` as monitoring and operators run them."""

from __future__ import annotations

import json

import pytest

from tests.support import Daemon, Shell, running_daemon


def test_a_healthy_daemon_is_ok(shell: Shell) -> None:
    ran = shell.run("eoq check --disk 0")
    assert ran.status == 0, ran.text
    assert ran.lines[0] == "EOQ OK - all is well"
    names = [line.split()[1].rstrip(":") for line in ran.lines[1:]]
    assert {"daemon", "configuration", "disk", "permissions", "sqlite", "integrity"} <= set(names)
    assert "integrity" not in shell.run("eoq check --quick --disk 0").text


@pytest.mark.slow
def test_thresholds_make_warnings_and_critical_states(daemon: Daemon) -> None:
    shell = daemon.shell()
    shell.run("for n in 1 2 3; do eoq send mail $n; done; eoq send other x")
    for options, status, first in (
        ("--waiting 4", 0, "OK"),
        ("--waiting 3", 1, "WARNING"),
        ("--waiting 2:3", 2, "CRITICAL"),
        ("--waiting 3 --queue oth*", 0, "OK"),
        ("--waiting 1", 1, "WARNING"),
        ("--oldest 0", 1, "WARNING"),
        ("--oldest 3600:7200", 0, "OK"),
        ("--dead 1", 0, "OK"),
    ):
        ran = shell.run(f"eoq check --quick --disk 0 {options}")
        assert (ran.status, ran.lines[0].split()[1]) == (status, first), (options, ran.text)
    assert "1 more queues" in shell.run("eoq check --quick --disk 0 --waiting 1").lines[0]
    full = shell.run("eoq check --quick --disk 100%:100% --waiting 3 --json")
    assert full.status == 2
    report = json.loads(full.text)
    assert (report["status"], report["code"]) == ("critical", 2)
    states = {check["name"]: check["status"] for check in report["checks"]}
    assert (states["disk"], states["waiting"]) == ("critical", "warning")


@pytest.mark.parametrize("mode", [0o644, 0o400, 0], ids=oct)
def test_a_file_that_others_can_read_or_its_owner_cannot_is_a_warning(daemon: Daemon, mode: int) -> None:
    daemon.db.chmod(mode)
    ran = daemon.shell().run("eoq check --quick --disk 0")
    assert ran.status == 1
    assert f"chmod 0600 {daemon.db}" in ran.lines[0]


@pytest.mark.slow
def test_damage_of_the_file_is_critical(daemon: Daemon) -> None:
    shell = daemon.shell()
    shell.run("for n in 1 2 3 4; do head -c 3000 /dev/zero | tr '\\0' x | eoq send q --id $n -; done")
    assert daemon.terminate() == 0
    daemon.start()
    assert shell.run("eoq check --disk 0").status == 0
    pages = daemon.db.stat().st_size // 4096
    with daemon.db.open("r+b") as file:  # of the test's process, which has no connection to it
        file.seek((pages - 1) * 4096)
        file.write(b"\xff" * 4096)
    ran = shell.run("eoq check --disk 0")
    assert (ran.status, "damaged" in ran.lines[0]) == (2, True), ran.text
    daemon.kill()


def test_no_daemon_is_critical(alone: Shell) -> None:
    ran = alone.run("eoq check")
    assert (ran.status, ran.lines[0].split()[1]) == (2, "CRITICAL")
    assert "eoq start" in ran.lines[0]


@pytest.mark.parametrize("options", ["--waiting x", "--waiting 1:2:3", "--disk -1", "--dead nan", "--nonsense"])
@pytest.mark.first_by_default
def test_a_wrong_option_is_unknown(shell: Shell, options: str) -> None:
    ran = shell.run(f"eoq check {options}")
    assert (ran.status, ran.text) == (3, "")
    assert options.split()[0] in ran.errors


@pytest.mark.slow
def test_metrics_and_totals_are_printed(shell: Shell, queue: str) -> None:
    shell.run(f"eoq send {queue} 1; eoq send {queue} 2")
    assert (
        f'eoq_queue_messages{{messaging_destination_name="{queue}",state="ready"}} 2' in shell.run("eoq metrics").lines
    )
    (line,) = [line for line in shell.run("eoq queues --totals").lines if line.startswith(f"{queue} ")]
    assert line.split()[1:3] == ["2", "0"]
    (row,) = [row for row in shell.run("eoq queues --json").rows if row["queue"] == queue]
    assert (row["totals"]["sent"], row["since_start"]["sent"], row["consumers"]) == (2, 2, 0)
    assert " sent" in shell.run("eoq status").text


# ── why ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _why(shell: Shell, queue: str, id: str) -> tuple[str, list[str]]:
    ran = shell.run(f"eoq why {queue} {id} --json")
    found = json.loads(ran.text)
    assert all(reason["text"] for reason in found["reasons"])
    return found["state"], [reason["reason"] for reason in found["reasons"]]


@pytest.mark.slow
def test_why_a_message_waits(shell: Shell, queue: str) -> None:
    shell.run(
        f"eoq send {queue} 1 --id first; eoq send {queue} 2 --id second; eoq send {queue} 3 --id later --delay 3600"
    )
    shell.run(f"eoq send {queue} 4 --id g1 --group g --delay 3600; eoq send {queue} 5 --id g2 --group g")
    assert _why(shell, queue, "first") == ("ready", ["no_receive"])
    assert _why(shell, queue, "second") == ("ready", ["ahead", "no_receive"])
    assert _why(shell, queue, "later") == ("delayed", ["delayed"])
    assert _why(shell, queue, "g2") == ("blocked", ["group"])
    assert "waits for 'g1'" in shell.run(f"eoq why {queue} g2").text
    shell.run(f"eoq pause {queue}")
    assert _why(shell, queue, "first") == ("ready", ["paused", "no_receive"])
    shell.run(f"eoq resume {queue}")
    receipt = shell.run(f"eoq receive {queue} --lease 3600 --json").rows[0]["receipt"]
    assert _why(shell, queue, "first") == ("leased", ["leased"])
    assert "for another" in shell.run(f"eoq why {queue} first").text
    shell.run(f"eoq nack {receipt} --delay 3600 --error 'no network'")
    assert "no network" in shell.run(f"eoq why {queue} first").text
    receipt = shell.run(f"eoq receive {queue} --lease 3600 --json").rows[0]["receipt"]
    shell.run(f"eoq reject {receipt} --error 'no account'")
    assert _why(shell, queue, "second") == ("dead", ["dead"])
    shell.run(f"eoq dead drop {queue} second --yes")
    assert _why(shell, queue, "second") == ("dropped", ["settled"])
    unknown = shell.run(f"eoq why {queue} nobody")
    assert (unknown.status, unknown.text) == (1, "")


@pytest.mark.slow
def test_why_names_the_limits_of_a_queue(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = tmp_path_factory.mktemp("limits") / "eoq.toml"
    config.write_text("[queues.slow]\nrate = 0.001\n[queues.narrow]\nmax_in_flight = 1\n")
    with running_daemon("--config", str(config)) as daemon:
        shell = daemon.shell()
        shell.run(
            "for q in slow narrow; do eoq send $q 1 --id a; eoq send $q 2 --id b; eoq receive $q --lease 3600; done"
        )
        assert _why(shell, "slow", "b")[1][0] == "rate"
        assert "is full for" in shell.run("eoq why slow b").text
        assert _why(shell, "narrow", "b")[1][0] == "in_flight"
