"""`make gpu` on the stand-in GPU: each step runs its commands and reads what they did.

Its captions are random letters, so the demo must be found to be wrong; nothing else may be.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.cuda_job import PYTHON, stand_in_environment
from support.pretend_gpus import PretendGpus

ROOT = Path(__file__).parents[2]
LIMIT_S = 1500.0
STEPS = ("demo", "job8", "ceiling8", "kill", "interrupt")


@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_steps_of_make_gpu_find_what_they_should(tmp_path: Path) -> None:
    environment = stand_in_environment(PretendGpus(1), tmp_path / "caches")
    environment["PYTHONPATH"] += f"{os.pathsep}{ROOT}"
    options = [f"--folder={tmp_path}", "--model=demo", f"--only={','.join(STEPS)}"]
    patience = ["--patience=10", f"--budget={LIMIT_S}"]
    command = [str(PYTHON), "-m", "tools.gpu", *options, *patience]
    done = subprocess.run(command, env=environment, cwd=tmp_path, timeout=LIMIT_S + 60)
    whole: dict[str, Any] = json.loads((tmp_path / "results.json").read_bytes())
    steps = whole["steps"]
    assert {name: steps[name]["says"] for name in STEPS[1:] if not steps[name]["good"]} == {}
    assert not steps["demo"]["good"]
    assert steps["demo"]["equal_to_cpu"] == 0
    assert steps["kill"]["killed"]
    assert steps["interrupt"]["rows"] < steps["job8"]["rows"]
    assert whole["left_out"] == {}
    assert done.returncode == 1
    assert list(whole["ratios"]) == ["the job at 8 sequences, of vLLM alone"]
