"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support.hostile_corpus import make_hostile_corpus

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test asks a hub, and none waits for one
# How long an example takes says what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def hostile_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One defect per document or image, and `expected.json`; nobody writes into it."""
    folder = tmp_path_factory.mktemp("hostile") / "corpus"
    make_hostile_corpus(folder)
    return folder
