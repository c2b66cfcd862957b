"""The daemon's configuration file: what it means, and the errors of a wrong one."""

from __future__ import annotations

import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import eoq
from eoq.daemon.config.loader import load
from eoq.daemon.config.model import Config, LiveConfig
from eoq.daemon.config.problems import WrongConfig
from eoq.daemon.config.reload import changes
from eoq.daemon.config.settings import QueueSettings
from tests.cases import one_in
from tests.support import PATIENCE, Shell, eventually, running_daemon, short_folder


@pytest.mark.slow
def test_settled_records_are_removed_after_the_retention_of_their_queue(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text('[queues."short.*"]\nretention = 1\n')
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        for queue in ("short.one", "short.two", "long"):
            client.send_many(queue, [eoq.Outgoing(b"", id=str(number)) for number in range(500)])
            client.ack_many([(message, None) for message in client.receive(queue, 500)])
        client.send("short.one", "dead", id="dead")
        client.receive("short.one")[0].reject()
        eventually(lambda: client.result("short.one", "499") is None and client.result("short.two", "499") is None)
        assert client.result("long", "499") is not None
        dead = client.result("short.one", "dead")
        assert dead is not None and dead.outcome == "dead"
        # The id is new again once its record is removed, and its seq was never used before.
        last = client.ask("show", queue="short.one", id="dead")["message"]["seq"]
        assert not client.send("short.two", b"", id="499").duplicate
        assert client.ask("show", queue="short.two", id="499")["message"]["seq"] > last
        daemon.kill()
        daemon.restart()
        client.send("short.two", b"", id="after")
        assert client.ask("show", queue="short.two", id="after")["message"]["seq"] > last + 1


def test_a_seq_is_not_used_twice_after_the_last_record_is_removed(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text("[queues.q]\nretention = 0\n")
    with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
        client.send("q", b"", id="a")
        (message,) = client.receive("q")
        message.ack()
        eventually(lambda: client.result("q", "a") is None)
        daemon.kill()
        daemon.restart()
        client.queues()  # connects again: a send that is repeated over a new connection is too late for this retention
        client.send("q", b"", id="b")
        (after,) = client.receive("q")
        assert after.seq > message.seq
        assert after.watermark == after.seq


def test_the_daemon_sends_the_outboxes_of_its_configuration_also_one_created_later(folder: Path) -> None:
    config = folder / "eoq.toml"
    config.write_text('[[relay]]\npath = "there.db"\n[[relay]]\npath = "later.db"\n')
    with closing(sqlite3.connect(folder / "there.db")) as there:
        outbox = eoq.Outbox(there)
        with running_daemon("--config", str(config)) as daemon, eoq.connect(daemon.socket) as client:
            with there:
                outbox.send("q", "there")
            assert client.receive("q", wait=PATIENCE)[0].text == "there"
            with closing(sqlite3.connect(folder / "later.db")) as later, later:
                eoq.Outbox(later).send("q", "later")
            assert client.receive("q", wait=PATIENCE)[0].text == "later"


# ── what it means ───────────────────────────────────────────────────────────────────────────────────────────


def _load(folder: Path, text: str | bytes) -> Config:
    path = folder / "eoq.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path)


def test_the_first_matching_section_that_has_a_setting_counts(folder: Path) -> None:
    config = _load(
        folder,
        """
        [queues."mail.high"]
        max_attempts = 1
        max_depth = "none"
        [queues."mail.*"]
        max_attempts = 2
        retention = 60
        [queues."*"]
        retention = 3600
        max_depth = 1000
        """,
    )
    assert config.queue("mail.high") == QueueSettings(max_attempts=1, retention=60, max_depth=None)
    assert config.queue("mail.low") == QueueSettings(max_attempts=2, retention=60, max_depth=1000)
    assert config.queue("other") == QueueSettings(retention=3600, max_depth=1000)
    assert config.queue("other", {"max_attempts": 7}).max_attempts == 7
    assert config.origins("mail.high") == {"max_attempts": "mail.high", "max_depth": "mail.high", "retention": "mail.*"}
    assert config.shortest_retention == 60


def test_settings_read_while_the_configuration_is_replaced_are_not_cached(folder: Path) -> None:
    """The writer's thread may read settings while the event loop replaces the configuration."""
    old, new = (_load(folder, f"[queues.q]\nmax_attempts = {number}\n") for number in (1, 2))

    class Replacing(Mapping[str, int]):
        """Overrides that replace the configuration while they are read."""

        def __iter__(self) -> Iterator[str]:
            current.replace(new)
            yield "burst"

        def __len__(self) -> int:
            return 1

        def __getitem__(self, key: str) -> int:
            return 1

    current = LiveConfig(old, Replacing())
    current.queue("q")
    assert current.queue("q").max_attempts == 2


@pytest.mark.parametrize(
    ("pattern", "fitting", "other"),
    [
        ("q", "q", "qq"),
        ("*", "anything.at-all_1", None),
        ("a.*", "a.b.c", "a"),
        ("q?", "q1", "q12"),
        ("q[0-9]", "q7", "qx"),
        ("[!a]*", "b", "a"),
        ("a.b", "a.b", "axb"),
    ],
)
def test_a_pattern_matches_the_names_it_should(folder: Path, pattern: str, fitting: str, other: str | None) -> None:
    config = _load(folder, f'[queues."{pattern}"]\nmax_attempts = 2\n')
    assert config.queue(fitting).max_attempts == 2
    if other is not None:
        assert config.queue(other).max_attempts == 10


def test_the_example_has_every_setting_with_its_default() -> None:
    example = Path(__file__).parents[2] / "examples" / "eoq.toml"
    config = load(example)
    assert config.queue("q") == QueueSettings()
    assert config.queues["*"].keys() == set(QueueSettings.__struct_fields__)
    text = re.sub(r"^# (?=\[\[|\[permissions|\"?[\w:*]+\"? = )", "", example.read_text(), flags=re.MULTILINE)
    with short_folder() as folder:
        whole = _load(folder, text)
    for field in msgspec.structs.fields(Config):
        value = getattr(whole, field.name)
        assert value != field.default, field.name
        for part in value if isinstance(value, list) else [value]:
            # Some settings of a schedule exclude each other.
            if isinstance(part, msgspec.Struct) and field.name not in ("schedule", "forward", "ingest"):
                assert None not in msgspec.structs.astuple(part), f"{field.name}: {part}"


@pytest.mark.slow
def test_the_file_names_the_daemons_paths_and_flags_take_precedence(folder: Path) -> None:
    (folder / "conf").mkdir()
    config = folder / "conf" / "eoq.toml"
    config.write_text('[daemon]\ndb = "../data/own.db"\nsocket = "own"\n')
    with running_daemon("--config", str(config)) as daemon:
        # The flags of this daemon name both paths.
        status = daemon.ask(op="status")
        assert (status["database"], status["socket"]) == (str(daemon.db), str(daemon.socket))
        assert status["config"] == str(config)
        assert status["config_read_at"] > 0
    shell = Shell(folder / "conf" / "own", folder)
    nothing = "unset EOQ_SOCKET EOQ_DB"
    try:
        # The working folder is another one, and the path in the environment is relative.
        assert shell.run(f"{nothing}; cd conf && EOQ_CONFIG=eoq.toml eoq start").status == 0
        status = shell.run("eoq status --json").rows[0]
        assert Path(status["database"]).resolve() == (folder / "data" / "own.db").resolve()
        assert status["config"] == str(config)
    finally:
        shell.run("eoq stop")


@pytest.mark.slow
def test_the_users_own_configuration_is_read_if_no_other_is_named(folder: Path) -> None:
    own = folder / "eoq" / "eoq.toml"
    own.parent.mkdir()
    own.write_text("[queues.q]\nmax_attempts = 1\n")
    with running_daemon(environment={"XDG_CONFIG_HOME": str(folder)}) as daemon, eoq.connect(daemon.socket) as client:
        assert daemon.ask(op="status")["config"] == str(own)
        client.send("q", b"", id="m")
        client.receive("q")[0].nack()
        assert client.ask("show", queue="q", id="m")["message"]["state"] == "dead"
    with running_daemon(environment={"XDG_CONFIG_HOME": str(folder), "EOQ_CONFIG": "/dev/null"}) as daemon:
        assert daemon.ask(op="status")["config"] == "/dev/null"
    own.write_text("broken")
    ran = Shell(folder / "s", folder).run("eoq daemon", XDG_CONFIG_HOME=str(folder))
    assert ran.status == 65
    assert str(own) in ran.errors


# ── errors ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "word"),
    one_in(
        2,
        [
            ("[queues", "not TOML"),
            ("[queues.q]\nretentoin = 1", "retentoin"),
            ("[queues.q]\nretention = -1", "retention"),
            ('[queues.q]\nretention = "long"', "retention"),
            ("[[relay]]\npath = 1", "path"),
            ("unknown = 1", "unknown"),
        ],
    ),
)
def test_a_daemon_with_a_wrong_file_does_not_start_and_prints_the_error(
    shell: Shell, folder: Path, text: str, word: str
) -> None:
    config = folder / "eoq.toml"
    config.write_text(text)
    ran = shell.run(f"eoq daemon --db {folder}/x.db --socket {folder}/x --config {config}")
    assert ran.status == 65
    assert word in ran.errors
    assert "Traceback" not in ran.errors
    assert shell.run(f"eoq daemon --config {folder}/none.toml").status == 2


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ('[queues."mail.*"]\nretenton = 1', 'queues."mail.*".retenton', "do you mean `retention`?"),
        ("[queue.q]", "queue", "do you mean `queues`?"),
        ("[people]", "people", "there are daemon,"),
        ("[queues.mail.high]\nttl = 1", "queues.mail.high", '[queues."mail.high"]'),
        ("[queues.q]\nretention = nan", "queues.q.retention", "a number >= 0, not nan (seconds"),
        ("[queues.q]\nretention = inf", "queues.q.retention", "a number <= 3162240000, not inf"),
        ("[queues.q]\nretention = 0x" + "f" * 500, "queues.q.retention", "too many digits"),
        ("[queues.q]\nretention = 2020-01-01", "queues.q.retention", "not 2020-01-01"),
        ("[queues.q]\nretention = true", "queues.q.retention", "not true"),
        ('[queues.q]\nretention = "none"', "queues.q.retention", "a number"),
        ("[queues.q]\nmax_attempts = 0", "queues.q.max_attempts", "an integer >= 1, not 0 (deliveries"),
        ('[[schedule]]\nname = "n"\nqueue = "q"\ncatch_up = "x"', "[[schedule]] no. 1: catch_up", '"last" or "all"'),
        ("[queues.q]\nmax_attempts = 1.5", "queues.q.max_attempts", "an integer, not 1.5"),
        ("[queues.q]\nrate = 0", "queues.q.rate", "a number > 0, not 0"),
        ('[queues.q]\nwhen_full = "explode"', "queues.q.when_full", '"refuse"'),
        ("[queues.q]\nretry_base = 600", "queues.q.retry_base", "`retry_cap` cuts it to 300"),
        ("[queues]\nq = 1", "queues.q", "must be a table, not 1"),
        ("queues = [1]", "queues", "must be a table, not an array"),
        ('[queues."-q"]', "queues.-q", "must be a queue's name"),
        ('[queues."q[a"]', 'queues."q[a"', "must be a queue's name"),
        ('[queues."q e"]', 'queues."q e"', "must be a queue's name"),
        ('[queues."\\u0007"]', 'queues."\\u0007"', "must be a queue's name"),
        (f'[queues."{"q" * 201}"]', "queues.qqq", "length <= 200"),
        ('[daemon]\ndb = "~/eoq.db"', "daemon.db", "a path without `~`"),
        ('[daemon]\nsocket = "a\\u0000b"', "daemon.socket", "a path"),
        ("daemon = 1", "daemon", "must be a table"),
        ("[storage]\nmax_file_bytes = 1", "storage.max_file_bytes", "an integer >= 1048576"),
        ("[[relay]]\n[[relay]]\npath = 1", "[[relay]] no. 2: path", "not 1"),
        ("[[relay]]", "[[relay]] no. 1", "needs `path`"),
        ("relay = [1]", "relay", "under [[relay]]"),
        ('[relay]\npath = "x"', "relay", "not a table"),
        ('[[relay]]\npath = "x"\n' * 2, "[[relay]] no. 2", "is there twice"),
        ('[[bind]]\ntopic = "a b"\nqueue = "q"', "[[bind]] no. 1: topic", "letters, digits"),
        ('[[bind]]\ntopic = "t"\nqueue = "q"\nheaders = {a = 1}', "[[bind]] no. 1: headers", "texts"),
        ("a = 1\na = 2", "", "not TOML"),
        ("[queues.q]\n[queues.q]", "", "twice"),
        ("a = " + "[" * 1900, "", "nested too deeply"),
        ("a = " + "9" * 1900 + "\n" + "b" * 3000, "line 2", "2,000 characters"),
        ("#" * 1024 * 1024 + "#", "", "1,048,576 bytes"),
        (b"a = 1 # \xff", "", "byte 9 is not UTF-8"),
    ],
)
def test_each_error_names_the_place_and_the_problem(folder: Path, text: str | bytes, place: str, words: str) -> None:
    with pytest.raises(eoq.InvalidRequest) as raised:
        _load(folder, text)
    said = str(raised.value)
    assert str(folder / "eoq.toml") in said
    assert f" {place}" in said
    assert words in said
    assert len(said) < 2000
    assert said.replace("\n", "").isprintable()


def test_all_errors_are_listed_at_once_up_to_a_limit(folder: Path) -> None:
    with pytest.raises(WrongConfig) as raised:
        _load(folder, "[queues.a]\nx = 1\nretention = -1\n[queues.b]\ny = 1\n[[relay]]\n")
    assert [problem.place for problem in raised.value.problems] == [
        *("queues.a.x", "queues.a.retention", "queues.b.y", "[[relay]] no. 1")
    ]
    with pytest.raises(WrongConfig) as raised:
        _load(folder, "".join(f"[queues.q{n}]\nx = 1\n" for n in range(1000)))
    assert len(raised.value.problems) == 100
    assert len(str(raised.value).splitlines()) < 30


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "".join(f"[queues.q{n}]\n" for n in range(1001)),
        "".join(f'[[relay]]\npath = "{n}"\n' for n in range(101)),
        "".join(f'[[bind]]\ntopic = "t"\nqueue = "q{n}"\n' for n in range(1001)),
    ],
)
def test_numbers_of_entries_are_bounded(folder: Path, text: str) -> None:
    with pytest.raises(eoq.InvalidRequest, match=r"of length <= 1000?$"):
        _load(folder, text)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_are_refused_or_read(content: bytes) -> None:
    _never_a_traceback(content)


_VALUES = r"""
nan -inf 1e400 [] [[]] {} {a=[{b=1}]} "" "\u0000" 07:32:00 1979-05-27T07:32:00Z 2024-02-30 true -0 0b1 "none" [1,{}] 1
"""
_KEYS = r"""
queues queues.q queues."*" queues.q.ttl queues.q.retention queues."" relay relay.path bind bind.headers daemon daemon.db
storage.max_file_bytes "" "\u001b" "\u2028"
"""
_values = st.sampled_from([*_VALUES.split(), "9" * 500])
_keys = st.sampled_from(_KEYS.split())
_headers = _keys.flatmap(lambda key: st.sampled_from([f"[{key}]", f"[[{key}]]"]))
_lines = st.one_of(_headers, st.builds("{} = {}".format, _keys, _values))


@settings(deadline=None)
@given(st.lists(_lines, max_size=8))
@pytest.mark.slow
def test_random_settings_are_refused_or_read(lines: list[str]) -> None:
    _never_a_traceback("\n".join(lines).encode())


def _never_a_traceback(content: bytes) -> None:
    with short_folder() as folder:
        try:
            config = _load(folder, content)
        except eoq.EoqError as error:
            assert str(folder) in str(error)
        else:
            assert isinstance(config.queue("q"), QueueSettings)
            assert all(line.isprintable() for line in changes(Config(), config))


@pytest.mark.parametrize("what", ["folder", "pipe", "missing"])
def test_a_path_that_is_not_a_file_is_refused_at_once(folder: Path, what: str) -> None:
    path = folder / "eoq.toml"
    if what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    with pytest.raises(eoq.InvalidRequest, match=str(path)):
        load(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_forbidden(folder: Path) -> None:
    _load(folder, "")
    (folder / "eoq.toml").chmod(0)
    with pytest.raises(eoq.Forbidden, match=r"eoq\.toml"):
        load(folder / "eoq.toml")
