"""``eoq config check`` and ``eoq config show``: errors, values and their sources."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from eoq.daemon.config.settings import QueueSettings
from tests.support import Daemon, Ran, Shell, running_daemon

RIGHT = """
[daemon]
db = "data/eoq.db"
[queues."mail.*"]
retention = 60
max_attempts = 3
[queues."*"]
ttl = 3600
[[relay]]
path = "shop.db"
[[bind]]
topic = "orders"
queue = "mail.orders"
headers = { country = "de" }
"""


@pytest.fixture
def alone(folder: Path) -> Shell:
    """A shell without a daemon, and with a configuration in its folder."""
    (folder / "eoq.toml").write_text(RIGHT)
    return Shell(folder / "none", folder)


def _shown(ran: Ran) -> dict[str, tuple[Any, str]]:
    """Return what `config show --json` printed: by setting, its value and its source."""
    assert (ran.status, ran.errors) == (0, "")
    return {row["setting"]: (row["value"], row["source"]) for row in ran.rows}


# ── check ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_check_of_a_right_file_exits_0_and_prints_one_line(alone: Shell, folder: Path) -> None:
    ran = alone.run("eoq config check eoq.toml")
    assert (ran.status, ran.errors) == (0, "")
    assert ran.text == "eoq.toml is right (sections of queues: 2, relays: 1, bindings: 1)\n"
    assert alone.run("eoq config check eoq.toml --json").rows == [{"file": "eoq.toml", "ok": True, "errors": []}]


def test_check_of_a_wrong_file_exits_65_and_lists_all_problems(alone: Shell, folder: Path) -> None:
    (folder / "eoq.toml").write_text("[queues.q]\nretentoin = 1\n[daemon]\ndb = 1\n")
    ran = alone.run("eoq config check eoq.toml")
    assert (ran.status, ran.text) == (65, "")
    assert "queues.q.retentoin: is not a setting; do you mean `retention`?" in ran.errors
    assert "daemon.db: must be a string, not 1 (a path" in ran.errors
    ran = alone.run("eoq config check eoq.toml --json")
    assert (ran.status, ran.errors) == (65, "")
    (row,) = ran.rows
    assert row["ok"] is False
    assert [error["place"] for error in row["errors"]] == ["queues.q.retentoin", "daemon.db"]


@pytest.mark.slow
def test_check_without_a_file_checks_the_one_that_a_daemon_would_read(alone: Shell, folder: Path) -> None:
    ran = alone.run("eoq config check")
    assert ran.status == 1
    assert "eoq.toml" in ran.errors
    assert alone.run("eoq config check", EOQ_CONFIG="eoq.toml").text.startswith(f"{folder}/eoq.toml is right")
    assert alone.run("eoq config check --config eoq.toml").status == 0
    (folder / "eoq").mkdir()
    (folder / "eoq" / "eoq.toml").write_text("broken")
    assert alone.run("eoq config check", XDG_CONFIG_HOME=str(folder)).status == 65


@pytest.mark.slow
def test_check_refuses_a_path_that_is_not_a_file(alone: Shell, folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "random").write_bytes(os.urandom(2000) + b"\xff")
    assert alone.run("eoq config check none.toml").status == 2
    assert alone.run("eoq config check .").status == 2
    assert alone.run("eoq config check pipe").status == 65
    assert alone.run("eoq config check random").status == 65


# ── show ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_value_comes_from_flag_then_environment_then_file_then_default(alone: Shell, folder: Path) -> None:
    def db(command: str) -> tuple[Any, str]:
        return _shown(alone.run(f"unset EOQ_DB; {command}"))["db"]

    show = "eoq config show --json"
    value, source = db(show)
    assert source == "default"
    assert value.endswith("/eoq/eoq.db")
    assert db(f"{show} --config eoq.toml") == (str(folder / "data" / "eoq.db"), "eoq.toml [daemon]")
    assert db(f"EOQ_DB=env.db {show} --config eoq.toml") == (str(folder / "env.db"), "env EOQ_DB")
    assert db(f"EOQ_DB=env.db {show} --config eoq.toml --db f.db") == (str(folder / "f.db"), "flag --db")


@pytest.mark.slow
def test_max_attempts_of_flag_or_environment_applies_to_all_queues(alone: Shell) -> None:
    def attempts(queue: str, options: str = "", before: str = "") -> tuple[Any, str]:
        return _shown(alone.run(f"{before} eoq config show {queue} --json {options}"))["max_attempts"]

    assert attempts("mail.a") == (10, "default")
    assert attempts("mail.a", "--config eoq.toml") == (3, 'eoq.toml [queues."mail.*"]')
    assert attempts("other", "--config eoq.toml") == (10, "default")
    assert attempts("mail.a", "--config eoq.toml", "EOQ_MAX_ATTEMPTS=5") == (5, "env EOQ_MAX_ATTEMPTS")
    assert attempts("mail.a", "--config eoq.toml --max-attempts 7", "EOQ_MAX_ATTEMPTS=5") == (7, "flag --max-attempts")
    assert alone.run("eoq config show", EOQ_MAX_ATTEMPTS="many").status == 2


@pytest.mark.slow
def test_the_path_of_the_configuration_has_a_source(alone: Shell, folder: Path) -> None:
    show = "eoq config show --json"
    assert _shown(alone.run(show))["config"] == (None, "default")
    path = str(folder / "eoq.toml")
    assert _shown(alone.run(f"{show} --config eoq.toml"))["config"] == (path, "flag --config")
    assert _shown(alone.run(show, EOQ_CONFIG="eoq.toml"))["config"] == (path, "env EOQ_CONFIG")


@pytest.mark.slow
def test_show_of_a_queue_prints_each_setting(alone: Shell) -> None:
    shown = _shown(alone.run("eoq config show mail.welcome --config eoq.toml --json"))
    assert list(shown) == list(QueueSettings.__struct_fields__)
    assert shown["retention"] == (60, 'eoq.toml [queues."mail.*"]')
    assert shown["ttl"] == (3600, 'eoq.toml [queues."*"]')
    assert shown["max_depth"] == (None, "default")
    ran = alone.run("eoq config show mail.welcome --config eoq.toml")
    assert ran.lines[0].split(maxsplit=2) == ["retention", "60", 'eoq.toml [queues."mail.*"]']
    assert len(ran.lines) == len(shown)
    assert alone.run("eoq config show 'mail.*'").status == 2


@pytest.mark.slow
def test_show_prints_the_whole_configuration_with_its_lists(alone: Shell) -> None:
    shown = _shown(alone.run("eoq config show --config eoq.toml --json"))
    assert shown['queues."mail.*".retention'] == (60, 'eoq.toml [queues."mail.*"]')
    assert shown["retention"] == (604800, "default")
    assert shown["relay.1"] == ({"path": "shop.db"}, "eoq.toml [[relay]]")
    assert shown["bind.1"][0] == {"topic": "orders", "queue": "mail.orders", "headers": {"country": "de"}}
    assert "5 % of the disk" in alone.run("eoq config show").text
    # In a pipe, the table has no heading.
    assert alone.run("eoq config show --config eoq.toml").lines[0].startswith("config ")


def test_show_of_a_wrong_file_exits_65(alone: Shell, folder: Path) -> None:
    (folder / "eoq.toml").write_text("[queues.q]\nretentoin = 1")
    ran = alone.run("eoq config show --config eoq.toml")
    assert (ran.status, ran.text) == (65, "")
    assert "retentoin" in ran.errors


def test_show_prints_what_a_daemon_with_the_same_options_uses(folder: Path) -> None:
    (folder / "eoq.toml").write_text(RIGHT)
    with running_daemon("--config", str(folder / "eoq.toml")) as daemon:
        status = daemon.ask(op="status")
        options = f"--db {daemon.db} --socket {daemon.socket} --config {folder}/eoq.toml"
        shown = _shown(daemon.shell().run(f"eoq config show --json {options}"))
        assert shown["db"][0] == status["database"]
        assert shown["socket"][0] == status["socket"]
        assert shown["config"][0] == status["config"]


@pytest.mark.slow
def test_status_prints_which_configuration_is_loaded(daemon: Daemon, folder: Path) -> None:
    assert "config " not in daemon.shell().run("eoq status").text
    (folder / "eoq.toml").write_text(RIGHT)
    with running_daemon("--config", str(folder / "eoq.toml")) as configured:
        text = configured.shell().run("eoq status").text
    assert f"{folder}/eoq.toml, read " in text
    assert "config_error" not in text
