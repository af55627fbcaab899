"""What a user sees while it runs."""

from __future__ import annotations

import io

from vllm_caption.progress import Progress, describe
from vllm_caption.stats import EngineStats, RunStats


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def stats(captioned: int = 0, every_s: float = 0.5) -> RunStats:
    made = RunStats([EngineStats(state="up"), EngineStats(state="starting")], total=100)
    made.scanning = False
    for number in range(captioned):
        made.count_caption(0, 50, 20, number * every_s)
    return made


def test_rate_is_that_of_the_last_half_minute_and_not_since_the_start() -> None:
    made = stats(captioned=10, every_s=10.0)
    for number in range(60):
        made.count_caption(1, 50, 20, 100 + number * 0.5)
    images_per_s, tokens_per_s = made.rates(130.0)
    assert 1.9 < images_per_s < 2.1
    assert 38 < tokens_per_s < 42


def test_line_names_rates_time_to_go_failures_and_engines() -> None:
    made = stats(captioned=40)
    made.count_failure("missing_file", "a.png: there is no such file")
    text = describe(made, 20.0)
    assert text == "2.0 images/s, 40 tokens/s, ETA 00:29, failed 1, engines 1/2"


def test_time_to_go_is_unknown_while_the_input_is_still_read() -> None:
    made = stats(captioned=40)
    made.scanning = True
    assert "ETA ?" in describe(made, 20.0)


def test_plain_output_has_a_line_each_50_items_or_10_seconds() -> None:
    out = io.StringIO()
    progress = Progress(quiet=False, stream=out)
    for now_s, captioned in ((0.0, 0), (1.0, 20), (2.0, 49), (3.0, 50), (4.0, 60), (13.5, 61)):
        progress.update(stats(captioned), now_s)
    shown = [line.split(" ")[0] for line in out.getvalue().splitlines()]
    assert shown == ["0/100", "50/100", "61/100"]


def test_terminal_gets_a_bar_and_texts_stand_above_it() -> None:
    out = Terminal()
    progress = Progress(quiet=False, stream=out)
    progress.update(stats(40), 20.0)
    progress.tell("Engine 1 died and starts again: CUDA error")
    progress.close()
    assert "40/100" in out.getvalue()
    assert "Engine 1 died and starts again: CUDA error\n" in out.getvalue()


def test_quiet_shows_texts_only() -> None:
    out = Terminal()
    progress = Progress(quiet=True, stream=out)
    progress.update(stats(40), 20.0)
    progress.tell("Engine 1 died")
    assert out.getvalue() == "Engine 1 died\n"
