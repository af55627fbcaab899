"""How long a report page with many items takes to open, and its gallery to search.

`python benchmarks/report_page.py [--items 100000]`: in Chromium, the minimum and median of several
tries; the gallery measures its own time, drawing included. Targets for 100,000 items on an
idle machine: open in 3 s, any search, filter or order in 0.2 s.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from playwright.sync_api import sync_playwright
from support.report_folder import chromium, many_rows, write_folder

from vllm_caption.commands.report.command import make_report

WORDS = ("redstar", "soft blue", "nothing like it", "a")


def settled(page: Any) -> None:
    page.wait_for_selector("#cards[aria-busy=false]", state="attached")


def open_page(browser: Any, address: str) -> Any:
    page = browser.new_context(viewport={"width": 1280, "height": 850}).new_page()
    page.goto(address)
    page.wait_for_selector("html[data-ready]", timeout=120_000)
    return page


def filter_ms(page: Any, act: Callable[[], None]) -> float:
    page.fill("#q", "")
    page.select_option("#order", "")
    settled(page)
    act()
    settled(page)
    return float(page.get_attribute("html", "data-filter-ms"))


def told(what: str, values: list[float], unit: str, digits: int) -> None:
    least, median = (f"{f(values):.{digits}f}" for f in (min, statistics.median))
    print(f"{what:28} {least:>8} {median:>8} {unit}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--tries", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        page_file = Path(folder, "page.html")
        make_report([write_folder(Path(folder, "out"), many_rows(args.items))], page_file)
        browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        opened_s = []
        for _ in range(args.tries):
            began_s = time.perf_counter()
            page = open_page(browser, page_file.as_uri())
            opened_s.append(time.perf_counter() - began_s)
        print(f"{'':28} {'least':>8} {'median':>8}")
        told("open", opened_s, "s", 2)
        acts = {f"search {words!r}": lambda words=words: page.fill("#q", words) for words in WORDS}
        acts["order: slowest first"] = lambda: page.select_option("#order", "slow")
        slowest = 0.0
        for what, act in acts.items():
            taken_ms = [filter_ms(page, act) for _ in range(args.tries)]
            told(what, taken_ms, "ms", 0)
            slowest = max(slowest, min(taken_ms))
        browser.close()
    return 0 if min(opened_s) < 3 and slowest < 200 else 1


if __name__ == "__main__":
    sys.exit(main())
