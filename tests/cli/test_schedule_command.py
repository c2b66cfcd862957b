"""Test ``eoq schedule`` in a real shell."""

from __future__ import annotations

import re

import pytest

from tests.cases import one_in
from tests.support import Daemon, Shell, run_at_terminal

AT = "2030-01-31T09:00:00+00:00"


def test_add_prints_the_first_occurrence(shell: Shell, queue: str) -> None:
    ran = shell.run(f"TZ=UTC eoq schedule add {queue} {queue} hello --every 60 --at {AT}")
    assert (ran.status, ran.text) == (0, "2030-01-31 09:00:00+00:00\n")
    again = shell.run(f"eoq schedule add {queue} {queue} hello --every 60 --at {AT} --json")
    assert again.rows == [{"name": queue, "changed": False, "next_at": 1896080400}]


def test_another_definition_of_a_name_needs_replace(shell: Shell, queue: str) -> None:
    add = f"eoq schedule add {queue} {queue}"
    assert shell.run(f"{add} --cron @daily").status == 0
    refused = shell.run(f"{add} --cron @hourly")
    assert (refused.status, refused.text) == (65, "")
    assert "--replace" in refused.errors
    assert shell.run(f"{add} --cron @hourly --replace --json").rows[0]["changed"] is True


def test_an_occurrence_is_sent_with_its_options(shell: Shell, queue: str) -> None:
    options = "--every 1 --header a=b --header c=d --group g --priority -2"
    assert shell.run(f"printf 'x\\0\\377' | eoq schedule add {queue} {queue} - {options}").status == 0
    (row,) = shell.run(f"eoq receive {queue} --wait 20 --json").rows
    assert row["id"].startswith(f"{queue}@2")
    assert (row["body_base64"], row["headers"], row["group"]) == ("eAD/", {"a": "b", "c": "d"}, "g")
    assert shell.run(f"eoq schedule remove {queue}").status == 0


@pytest.mark.slow
def test_list_and_show_print_the_schedules(daemon: Daemon) -> None:
    shell = daemon.shell()
    shell.run(
        f"""
        eoq schedule add report reports 'the body' --cron '30 6 * * MON-FRI' --timezone Europe/Berlin
        eoq schedule add shift shifts --every 60 --at {AT} --catch-up none
        """
    )
    listed = shell.run("TZ=UTC eoq schedule list")
    assert [re.split("  +", line)[:3] for line in listed.lines] == [
        ["report", "reports", "30 6 * * MON-FRI Europe/Berlin"],
        ["shift", "shifts", "every 60 s"],
    ]
    assert listed.lines[1].endswith("2030-01-31 09:00:00+00:00  -")
    rows = shell.run("eoq schedule list --json").rows
    assert [(row["name"], row["last_at"]) for row in rows] == [("report", None), ("shift", None)]
    shown = shell.run("TZ=UTC eoq schedule show shift")
    assert "next_at   2030-01-31 09:00:00+00:00" in shown.lines
    assert "catch_up  none" in shown.lines
    assert shell.run("eoq schedule show report --json").rows[0]["message"] == {"body": "the body"}
    # At a terminal the table has a header.
    assert "occurrences" in run_at_terminal(shell, "eoq schedule list", "stdout")


def test_a_schedule_that_does_not_exist_is_1(shell: Shell, queue: str) -> None:
    for command in ("show", "remove"):
        ran = shell.run(f"eoq schedule {command} {queue}")
        assert (ran.status, ran.text) == (1, "")
        assert "there is no schedule" in ran.errors


@pytest.mark.parametrize(
    ("options", "status", "word"),
    one_in(
        3,
        [
            ("", 2, "--cron or --every"),
            ("--cron @daily --every 5", 2, "--cron or --every"),
            ("--every 0", 2, "--every"),
            ("--every 1h", 2, "--every"),
            ("--every 5 --timezone UTC", 2, "--timezone"),
            ("--cron @daily --at 5", 2, "--at"),
            ("--every 5 --at soon", 2, "soon"),
            ("--every 5 --catch-up some", 2, "--catch-up"),
            ("--every 5 --header x", 2, "NAME=VALUE"),
            ("--every 5 --priority 3000000000", 65, "priority"),
            ("--every 99999999999", 65, "every"),
            ("--cron '61 * * * *'", 65, "bad minute"),
            ("--cron '* * */20 * 1L'", 65, "50 years"),
            ("--cron @daily --timezone Mars/Olympus", 65, "Mars/Olympus"),
            ("--cron $'\\xff'", 65, "eoq: "),
        ],
    ),
)
@pytest.mark.first_by_default
def test_bad_options_are_refused(shell: Shell, queue: str, options: str, status: int, word: str) -> None:
    ran = shell.run(f"eoq schedule add {queue} {queue} {options}")
    assert (ran.status, ran.text) == (status, "")
    assert word in ran.errors


@pytest.mark.parametrize("command", ["add 'a b' q --every 1", "add a 'b c' --every 1", "show ''", "remove a/b", "fly"])
@pytest.mark.first_by_default
def test_bad_names_are_refused(shell: Shell, command: str) -> None:
    assert shell.run(f"eoq schedule {command}").status == 2


def test_without_a_daemon_it_is_69(shell: Shell) -> None:
    assert shell.run("eoq schedule list --socket /tmp/eoq-none").status == 69
