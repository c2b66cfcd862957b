"""Schedule rules: when the occurrences are, and which of the past ones are sent."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eoq.daemon.rules.schedule_rules import MOST_MISSED, Every, Rule, Timing, due, first_of, rule_of
from eoq.errors import InvalidRequest

BERLIN = ZoneInfo("Europe/Berlin")
DAY = 86400


def _cron(expression: str, zone: str | None = "Europe/Berlin") -> Rule:
    return rule_of(Timing(expression, zone, None, None))


def _berlin(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=BERLIN).timestamp()


def _days(rule: Rule, start: str, end: str) -> list[str]:
    """Return the occurrences between two moments in Berlin, with their offsets from UTC."""
    found, moment = [], rule.after(_berlin(start) - 1)
    while moment is not None and moment < _berlin(end):
        found.append(f"{datetime.fromtimestamp(moment, BERLIN):%d %H:%M %z}")
        moment = rule.after(moment)
    return found


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["28 02:30 +0100", "29 03:00 +0200", "30 02:30 +0200"]),
        ("0,30 2 * * *", ["28 02:00 +0100", "28 02:30 +0100", "29 03:00 +0200", "30 02:00 +0200", "30 02:30 +0200"]),
        ("0 4 * * *", ["28 04:00 +0100", "29 04:00 +0200", "30 04:00 +0200"]),
    ],
)
def test_occurrences_in_a_skipped_hour_come_once_right_after_it(expression: str, expected: list[str]) -> None:
    assert _days(_cron(expression), "2026-03-28", "2026-03-31") == expected


def test_an_occurrence_in_a_repeated_hour_comes_once() -> None:
    rule = _cron("30 2 * * *")
    assert _days(rule, "2026-10-24", "2026-10-27") == ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]
    # Also where the daemon asks in the second of the two hours.
    second = datetime(2026, 10, 25, 2, 10, fold=1, tzinfo=BERLIN).timestamp()
    assert rule.after(second) == _berlin("2026-10-26T02:30")


def test_occurrences_more_often_than_hourly_follow_elapsed_time() -> None:
    assert len(_days(_cron("*/15 * * * *"), "2026-10-25T01:00", "2026-10-25T04:00")) == 16
    assert len(_days(_cron("*/15 * * * *"), "2026-03-29T01:00", "2026-03-29T04:00")) == 8


def test_the_zone_is_utc_unless_another_is_named() -> None:
    assert _cron("0 12 * * *", None).after(0) == 12 * 3600
    assert _cron("0 12 * * *", "Asia/Kolkata").after(0) == 12 * 3600 - 5.5 * 3600


def test_nicknames() -> None:
    assert _cron("@Daily", "UTC").after(1.0) == DAY
    assert _cron("@hourly", "UTC").after(3599.5) == 3600


@pytest.mark.parametrize("start", [0, 1_000_000])
def test_every_counts_from_its_start_and_never_drifts(start: int) -> None:
    rule = Every(7, start)
    assert [rule.after(start - 1e6), rule.after(start - 1), rule.after(start), rule.after(start + 6.9)] == [
        *(start, start, start + 7, start + 7)
    ]
    assert rule.after(start + 7e8) == start + 7e8 + 7
    assert list(rule.back_from(start + 20.5)) == [start + 14, start + 7, start]
    assert list(rule.back_from(start - 1)) == []


def test_the_first_occurrence_of_every_is_one_interval_after_it_was_added() -> None:
    assert rule_of(first_of(Timing(None, None, 60, None), 1000.75)).after(1000.75) == 1060


_FIELDS = ["*", "0", "5", "59", "*/7", "1-5", "3,4", "MON", "L", "*/2", "1-20/3"]


@given(
    st.lists(st.sampled_from(_FIELDS), min_size=5, max_size=5),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata"]),
    st.integers(1_700_000_000, 1_900_000_000),
)
def test_back_from_yields_the_same_occurrences_as_after(fields: list[str], zone: str, moment: int) -> None:
    with suppress(InvalidRequest):
        rule = _cron(" ".join(fields), zone)
        onward: list[int] = []
        found: int | None = moment
        while len(onward) < 20 and found is not None and (found := rule.after(found)) is not None:
            onward.append(found)
        assert onward == sorted(set(onward))
        if onward:
            back = itertools.takewhile(lambda found: found > moment, rule.back_from(onward[-1] + 0.5))
            assert list(back) == onward[::-1]


@pytest.mark.slow
@given(st.one_of(st.text(max_size=30), st.text("0123456789*/,-#LWMON @", max_size=30)))
def test_any_text_is_a_rule_or_refused(text: str) -> None:
    with suppress(InvalidRequest):
        rule = _cron(text)
        moment = rule.after(1_700_000_000.5)
        assert moment is None or moment > 1_700_000_000.5
        assert next(rule.back_from(1_700_000_000.5), 0) <= 1_700_000_000.5


@pytest.mark.parametrize(
    "expression",
    [
        *("", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 8"),
        *(
            "*/0 * * * *",
            "5-1 * * * *",
            "a * * * *",
            "@reboot",
            "@",
            "1" * 200,
            "* * * * \0",
            "٣ * * * *",
            "0 0 30 2 *",
        ),
    ],
)
def test_an_invalid_cron_expression_is_refused(expression: str) -> None:
    with pytest.raises(InvalidRequest, match="no cron expression"):
        _cron(expression).after(0)


@pytest.mark.parametrize(
    "zone",
    ["Europe/Berlix", "Europe", "/etc/passwd", "../../etc/passwd", "a\0b", ".", "", "x" * 100, "tzdata.zi", "Ü"],
)
def test_an_unknown_time_zone_is_refused(zone: str) -> None:
    if zone:
        with pytest.raises(InvalidRequest, match="no time zone"):
            _cron("* * * * *", zone)


@pytest.mark.parametrize(
    ("timing", "word"),
    [
        (Timing(None, None, None, None), "either"),
        (Timing("* * * * *", None, 5, None), "either"),
        (Timing(None, "UTC", 5, None), "timezone"),
        (Timing("* * * * *", None, None, 5), "`at`"),
        (Timing(None, None, 5, None), "`at`"),
    ],
)
def test_timings_that_contradict_themselves_are_refused(timing: Timing, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        rule_of(timing)


def test_a_moment_beyond_the_last_year_has_no_occurrence() -> None:
    rule = _cron("* * * * *")
    assert rule.after(253402300799.0) is None
    assert rule.after(1e15) is None
    assert list(itertools.islice(rule.back_from(1e15), 1)) == []


def _every_minute(catch_up: str, late: float, missed: int) -> list[int]:
    """Return what is sent, in minutes, if ``missed`` occurrences have passed, the newest ``late`` seconds ago."""
    rule = Every(60, 0)
    return [at // 60 for at in due(rule, catch_up, 60, missed * 60 + late)]


@pytest.mark.parametrize("make", [lambda: Every(60, 0), lambda: _cron("* * * * *")])
@pytest.mark.parametrize("catch_up", ["last", "all", "none"])
def test_occurrences_that_are_in_time_are_sent(make: Callable[[], Rule], catch_up: str) -> None:
    assert due(make(), catch_up, 60, 60.0) == [60]
    assert due(make(), catch_up, 60, 119.9) == [60]
    assert due(make(), catch_up, 60, 120.0) == [60, 120]


def test_missed_occurrences_are_sent_as_catch_up_says() -> None:
    assert _every_minute("none", 30.0, 10) == [10]
    assert _every_minute("last", 30.0, 10) == [10]
    assert _every_minute("all", 30.0, 10) == list(range(1, 11))
    assert _every_minute("all", 30.0, 5000) == list(range(5000 - MOST_MISSED + 1, 5001))
    hourly = Every(3600, 0)
    assert due(hourly, "none", 3600, 8000.0) == []
    assert due(hourly, "last", 3600, 8000.0) == [7200]
    assert due(hourly, "all", 3600, 8000.0) == [3600, 7200]
    assert due(hourly, "none", 3600, 3661.0) == []
    assert due(hourly, "none", 3600, 3660.0) == [3600]
