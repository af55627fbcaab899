"""`python -m tools.screenshots`: the pictures of docs/screenshots, made from two runs of the demo.

Needs Chromium. Pages are shown in a window of 1,280 × 1,000 pixels, and saved as WebP, to be small.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any, Final

from PIL import Image
from playwright.sync_api import sync_playwright

from vllm_caption.commands.demo import run_demo
from vllm_caption.commands.report.command import make_report

FOLDER: Final = Path(__file__).parents[1] / "docs/screenshots"
CHROMIUM: Final = "/usr/bin/chromium"
WINDOW: Final = {"width": 1280, "height": 1000}
QUALITY: Final = 50
SHOWN: Final = "#?q=design_"
"""The shapes that the bundled model knows."""


def main(folder: Path) -> None:
    """Make both pictures; captions that ``folder`` has already are kept."""
    outputs = [folder / "shape_brief", folder / "shape_detailed"]
    for output in outputs:
        prompt = output.name.replace("_", "-")
        run_demo([f"--output={output}", f"--prompt={prompt}", "--quiet"])
    pages = {"report": folder / "report.html", "report-compare": folder / "compare.html"}
    make_report(outputs[:1], pages["report"])
    make_report(outputs, pages["report-compare"])
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, page in pages.items():
            tab = browser.new_page(viewport=WINDOW)
            tab.goto(page.as_uri() + SHOWN)
            tab.wait_for_selector("#cards[aria-busy=false]", state="attached")
            if name == "report-compare":
                tab.evaluate("document.querySelector('#gallery').scrollIntoView()")
            _save(tab, FOLDER / f"{name}.webp")
        browser.close()


def _save(tab: Any, path: Path) -> None:
    Image.open(io.BytesIO(tab.screenshot())).convert("RGB").save(path, quality=QUALITY, method=6)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
