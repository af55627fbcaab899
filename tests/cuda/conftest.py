"""vLLM's CUDA build, in the environment named by `CUDA_PYTHON`; without it, no tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.job import make_input

from tools.gpu.seven_billion import make_seven_billion

collect_ignore_glob = [] if "CUDA_PYTHON" in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input of 20 drawn shapes; read-only."""
    folder = tmp_path_factory.mktemp("shapes")
    make_input(folder, 20)
    return folder


@pytest.fixture(scope="session")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 15.4 GiB in 16 bit that takes no disk space."""
    return make_seven_billion(tmp_path_factory.mktemp("models") / "seven-billion")
