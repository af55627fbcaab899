"""The screen of a terminal while a run is watched; what was there before is back at the end."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live

from vllm_caption.commands.status.layout import draw
from vllm_caption.commands.status.overview import Views, overview
from vllm_caption.monitoring.live.line import ASCII_BLOCKS, BLOCKS


class Screen(AbstractContextManager["Screen"]):
    """Shows one overview after another."""

    def __init__(self, root: Path, stream: TextIO, gpu_hour_price: float | None = None) -> None:
        self._gpu_hour_price = gpu_hour_price
        self._title = str(root.absolute())
        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, screen=True, auto_refresh=False)

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, views: Views) -> None:
        """Draw the whole screen again, in the size that the terminal has now."""
        width, height = self._console.size
        blocks = ASCII_BLOCKS if self._console.options.ascii_only else BLOCKS
        now = datetime.now().astimezone()
        seen = overview(views, self._gpu_hour_price)
        lines = draw(seen, self._title, now, width, height, blocks)
        self._live.update(Group(*lines), refresh=True)
