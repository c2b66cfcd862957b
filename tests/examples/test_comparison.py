"""What the documents claim of eoq and of others: what eoq does has tests, and what others do has its source."""

from __future__ import annotations

import re
from typing import Final

from tests.examples.pages import ROOT, Page

PROOFS: Final = {
    "confirmed means on disk": ("power/test_power_loss.py", "faults/test_crash_points.py"),
    "a repeated send is stored once": ("integration/test_sending.py", "integration/test_reconnecting.py"),
    "processed id and effect in one transaction": ("integration/test_inbox_once.py", "chaos/test_chaos.py"),
    "send if and only if the application commits": ("integration/test_outbox.py", "faults/test_relay_crash_points.py"),
    "ack, result and further sends in one transaction": ("protocol/test_operations.py", "faults/test_crash_points.py"),
    "stored results, and waiting for them": ("integration/test_receiving.py", "cli/test_receiving_commands.py"),
    "a key that runs once (`once`)": ("integration/test_once.py", "faults/test_once_crash_points.py"),
    "delay": ("integration/test_receiving.py::delay", "faults/test_clock.py::test_a_wait_takes_the_time_it_had_left"),
    "time to live of a message": ("integration/test_limits.py::test_a_message_whose_time_to_live_is_over",),
    "recurring messages": ("integration/test_schedule.py", "model/test_schedules.py"),
    "priorities": ("integration/test_receiving.py::priorit", "model/test_model.py"),
    "order within a group, while other groups go on": (
        "integration/test_receiving.py::group",
        "faults/test_many.py::groups",
    ),
    "limit of messages in flight": ("integration/test_limits.py::in_flight",),
    "limit of deliveries per second": ("integration/test_limits.py::rate",),
    "backoff between retries": ("integration/test_limits.py::test_the_backoff_between_retries",),
    "dead letters, and a command that redrives them": ("cli/test_admin_commands.py::redriven",),
    "a history of failed deliveries with their errors": (
        "integration/test_admin.py::test_show_returns_the_whole_life",
    ),
    "one send to several queues (topics)": ("integration/test_admin.py::topic", "faults/test_crash_points.py"),
    "limit of waiting messages: refuse, or drop the oldest": (
        "integration/test_limits.py::full",
        "integration/test_limits.py::oldest",
    ),
    "pause": ("integration/test_admin.py::pause",),
    "messages of a dead worker are delivered again": ("faults/test_workers.py", "integration/test_receiving.py"),
    "settings that reload": ("integration/test_reload.py",),
    "sends while the server is away": ("cli/test_send_spool.py", "faults/test_spool_crash_points.py"),
}
"""For each row, the files of its tests. The text after "::" is part of the name of the most important test."""


README: Final = Page("README.md")
PEERS: Final = "Beside others"


def test_what_eoq_does_has_tests() -> None:
    rows = {row[0]: row[1:] for row in Page("eoq/docs/guide.md").rows("What eoq does")}
    assert rows.keys() == PROOFS.keys()
    assert all(len(cells) == 1 and cells[0] for cells in rows.values())


def test_each_claim_about_another_queue_names_its_source_and_the_table_its_date() -> None:
    rows = README.rows(PEERS)
    assert len(rows) > 4
    assert "eoq" in rows[0][0]
    for name, *claims in rows[1:]:
        for claim in claims:
            assert re.search(r"\]\(https://[^)]+\)", claim), f"{name}: {claim}"
    assert re.search(r"\b20\d\d\b", README.section(PEERS))


def test_the_named_tests_exist() -> None:
    for row, proofs in PROOFS.items():
        for proof in proofs:
            file, _, name = proof.partition("::")
            text = (ROOT / "tests" / file).read_text()
            assert re.search(rf"^(async )?def test_\w*{name.removeprefix('test_')}", text, re.MULTILINE), (row, proof)
