"""Fixtures that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support import temporary
from support.hostile_corpus import make_hostile_corpus

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test contacts the Hub or waits for it
# Three files run at a time: more threads of torch than one would wait for each other's core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The time of an example depends on what else the machine does.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

LONGEST = (
    "test_job",
    "test_crash",
    "test_docs",
    "test_api",
    "test_truth",
    "test_engine_faults",
    "test_executors",
    "test_other_models",
    "test_driver",
    "test_process",
    "test_report_page",
    "test_hostile",
    "test_ray_faults",
    "test_tune",
    "test_redo",
    "test_faulty_disk",
    "test_hostile_collections",
    "test_package",
    "test_structured",
)
"""The files that take longest; the others take a few seconds each."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker has one left when the others are done."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def folder_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that is built once stays in /tmp."""
    temporary.base = tmp_path_factory.getbasetemp()


@pytest.fixture(scope="session")
def hostile_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One defect per document or image, and `expected.json`; read-only."""
    folder = tmp_path_factory.mktemp("hostile") / "corpus"
    make_hostile_corpus(folder)
    return folder
