"""Where tests put what they build once for all of them."""

from __future__ import annotations

from pathlib import Path

base: Path | None = None
"""Set by `conftest.py`: pytest removes this folder some sessions later, even if it was killed."""
