"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a hub, and none waits for one
# How long an example takes says what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def corpora() -> Path:
    """The two generated inputs with their expected outcomes; they are not part of the project."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "corpora"
    folder = Path(os.environ.get("VLLM_CAPTION_CORPORA", beside))
    if not (folder / "hostile" / "expected.json").is_file():
        pytest.skip(f"no corpora at {folder}: set VLLM_CAPTION_CORPORA")
    return folder
