"""README's table beside others: eoq says "yes" in each row, and tests stand behind each of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

PROOFS: Final = {
    "confirmed means on disk": ("faults/test_power_loss.py", "faults/test_crash_points.py"),
    "a repeated send is stored once": ("integration/test_sending.py", "integration/test_reconnecting.py"),
    "processed id and effect in one transaction": ("integration/test_inbox_once.py", "faults/test_chaos.py"),
    "send if and only if the application commits": ("integration/test_outbox.py", "faults/test_relay_crash_points.py"),
    "ack, result and further sends at once": ("protocol/test_operations.py", "faults/test_crash_points.py"),
    "stored results, and waiting for them": ("integration/test_receiving.py", "cli/test_receiving_commands.py"),
    "a key that runs once (`once`)": ("integration/test_once.py", "faults/test_once_crash_points.py"),
    "delay": ("integration/test_receiving.py::delay", "faults/test_clock.py::test_a_wait_takes_the_time_it_had_left"),
    "time to live of a message": ("integration/test_limits.py::test_a_message_whose_time_is_over",),
    "recurring messages": ("integration/test_schedule.py", "model/test_schedules.py"),
    "priorities": ("integration/test_receiving.py::priorit", "model/test_model.py"),
    "groups in order, others go on": ("integration/test_receiving.py::group", "faults/test_many.py::groups"),
    "limit of messages in flight": ("integration/test_limits.py::in_flight",),
    "limit of deliveries a second": ("integration/test_limits.py::rate",),
    "growing waits between retries": ("integration/test_limits.py::test_waits_between_retries",),
    "dead letters, and a command that brings them back": ("cli/test_steering_commands.py::redriven",),
    "each failed delivery with its error": ("integration/test_admin.py::test_show_returns_the_whole_life",),
    "one send to several queues": ("integration/test_admin.py::topic", "faults/test_crash_points.py"),
    "limit of what waits, or the oldest goes": (
        "integration/test_limits.py::full",
        "integration/test_limits.py::oldest",
    ),
    "pause": ("integration/test_admin.py::pause",),
    "a worker's messages come again when it dies": ("faults/test_workers.py", "integration/test_receiving.py"),
    "settings that reload": ("integration/test_reload.py",),
    "sends while the server is away": ("cli/test_send_spool.py", "faults/test_spool_crash_points.py"),
}
"""The files of tests for each row, with a part of the names of the tests that count most."""


def _rows() -> dict[str, list[str]]:
    section = (ROOT / "README.md").read_text().split("\n## Beside others\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells[1:]}


def test_each_row_says_yes_for_eoq_and_has_its_tests() -> None:
    rows = _rows()
    assert rows.keys() == PROOFS.keys()
    assert {name for name, cells in rows.items() if cells[0] != "yes"} == set()
    assert {len(cells) for cells in rows.values()} == {8}


def test_the_tests_are_there() -> None:
    for row, proofs in PROOFS.items():
        for proof in proofs:
            file, _, name = proof.partition("::")
            text = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^(async )?def test_\w*{name.removeprefix('test_')}", text, re.MULTILINE), (row, proof)
