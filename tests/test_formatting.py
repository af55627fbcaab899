"""How durations, times, shares and errors appear in messages."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from vllm_caption.formatting import (
    date_and_time,
    did_you_mean,
    duration,
    first_line,
    per_second,
    percent,
    percent_done,
    percentages,
    recorded_moment,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.00234, "2.3 ms"),
        (0.00999, "10 ms"),
        (0.25, "250 ms"),
        (0.9999, "1 s"),
        (1, "1 s"),
        (2.44, "2.4 s"),
        (9.97, "10 s"),
        (45, "45 s"),
        (59.6, "1 min"),
        (90, "1 min 30 s"),
        (3599.7, "1 h"),
        (11_520, "3 h 12 min"),
        (86_399, "1 d"),
        (47 * 3600, "1 d 23 h"),
        (500_000, "5 d 19 h"),
        (1e9, "11,574 d 2 h"),
    ],
)
def test_duration_has_at_most_two_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("at", "here", "anywhere"),
    [
        ("2026-11-30T09:10:00+00:00", "10:10", "30 Nov 2026, 09:10 UTC"),
        ("2026-11-28T23:10:00+00:00", "29 Nov 00:10", "28 Nov 2026, 23:10 UTC"),
        ("2025-12-31T12:00:00+00:00", "31 Dec 2025", "31 Dec 2025, 12:00 UTC"),
        ("yesterday\n", "yesterday\\u000a", "yesterday\\u000a"),
        ("", "", ""),
    ],
)
def test_recorded_time_is_local_where_it_is_read_now_and_utc_in_a_page(
    at: str, here: str, anywhere: str
) -> None:
    now = datetime(2026, 11, 30, 11, 53, tzinfo=timezone(timedelta(hours=1)))
    assert recorded_moment(at, now) == here
    assert date_and_time(at) == anywhere


@pytest.mark.parametrize(
    ("part", "whole", "decimals", "text"),
    [
        (0, 0, 0, "0%"),
        (0, 7, 1, "0.0%"),
        (3, 3, 0, "100%"),
        (1, 8, 0, "12%"),
        (1, 8, 1, "12.5%"),
        (1, 1000, 0, "under 1%"),
        (999, 1000, 0, "over 99%"),
        (1, 100_000, 1, "under 0.1%"),
        (99_999, 100_000, 1, "over 99.9%"),
    ],
)
def test_percent_is_0_or_100_only_if_that_is_exact(
    part: int, whole: int, decimals: int, text: str
) -> None:
    assert percent(part, whole, decimals) == text


def test_progress_is_100_percent_only_at_the_end() -> None:
    assert percent_done(99_999, 100_000) == "99%"
    assert percent_done(99_999, 100_000, 1) == "99.9%"
    assert percent_done(29, 100, 1) == "29.0%"
    assert percent_done(5, 5, 1) == "100.0%"
    assert percent_done(0, 0) == "0%"


@pytest.mark.parametrize(
    ("parts", "shown"),
    [
        ([1, 1, 1], ["34%", "33%", "33%"]),
        (
            [107, 107, 105, 104, 105, 105, 103, 104],
            ["13%", "13%", "13%", "12%", "13%", "12%", "12%", "12%"],
        ),
        ([0.97, 0.025, 0.005], ["97%", "3%", "0%"]),
        ([0, 0], ["0%", "0%"]),
        ([], []),
    ],
)
def test_percentages_of_one_whole_add_up_to_100(parts: list[float], shown: list[str]) -> None:
    assert percentages(parts) == shown
    if sum(parts):
        assert sum(int(value.rstrip("%")) for value in percentages(parts)) == 100


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0, "0.0"), (0.0421, "0.042"), (0.999, "1.0"), (5.93, "5.9"), (1412, "1,412.0")],
)
def test_slow_rate_keeps_its_digits(rate: float, text: str) -> None:
    assert per_second(rate) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  \n two  words \n"), "two words"),
        (ValueError(""), "ValueError"),
        (ValueError("a\x1b[2Kb\u202ec\udcffd\te"), "a [2Kb c d e"),
        (ValueError("x" * 600), "x" * 500),
        (ValueError("1 validation error for X\n  seed\n    too large"), "seed"),
        (ValueError("1 validation error for X"), "1 validation error for X"),
    ],
)
def test_error_is_shown_by_its_first_line_that_is_not_blank(error: Exception, text: str) -> None:
    assert first_line(error, skip=("1 validation", "For further")) == text


def test_name_that_differs_in_case_alone_is_the_one_that_was_meant() -> None:
    assert did_you_mean("TITEL", ["Title", "id"]) == "did you mean Title?"
    assert did_you_mean("--max-num", ["--max-num-seqs", "--max-nums"]) == "did you mean --max-nums?"
    assert did_you_mean("x", ["Title"]) == ""
