"""How durations and errors appear in messages."""

from __future__ import annotations

import pytest

from vllm_caption.formatting import clock, did_you_mean, duration, first_line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00234, "2.3 ms"),
        (0.25, "250 ms"),
        (0.9999, "1000 ms"),
        (1, "1 s"),
        (2.44, "2.4 s"),
        (9.97, "10 s"),
        (45, "45 s"),
        (90, "1.5 minutes"),
        (3600, "1.0 hours"),
        (47 * 3600, "47.0 hours"),
        (500_000, "5.8 days"),
    ],
)
def test_duration_is_in_the_unit_that_suits_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "?"),
        (0, "00:00"),
        (83.9, "01:23"),
        (7283, "2:01:23"),
        (86_399, "23:59:59"),
        (86_400, "1 d 00:00"),
        (439_283, "5 d 02:01"),
    ],
)
def test_clock_is_readable_beyond_a_day(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


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
