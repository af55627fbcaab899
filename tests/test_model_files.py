"""A model's folder that is replaced during a run: no engine starts with other weights."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from support.job import FAKE, input_flags, make_gated, make_input, start, status, wait_until

from vllm_caption.demo import MODEL_DIR
from vllm_caption.engines.model_files import model_files
from vllm_caption.errors import RunStopped


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model."""
    return shutil.copytree(MODEL_DIR, tmp_path / "model")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize(("fault", "words"), [("touched", "has changed"), ("gone", "is gone")])
def test_file_that_an_engine_loads_and_that_changed_is_named(
    model: Path, name: str, fault: str, words: str
) -> None:
    files = model_files(str(model))
    assert files is not None
    files.check()
    if fault == "gone":
        (model / name).unlink()
    else:
        os.utime(model / name, ns=(1, 1))
    with pytest.raises(RunStopped, match=f"{name} {words} since the run began"):
        files.check()


def test_file_that_no_engine_loads_may_change(model: Path) -> None:
    files = model_files(str(model))
    assert files is not None
    (model / "training.log").write_text("another line")
    (model / "README.md").write_text("another text")
    files.check()


def test_name_on_the_hub_is_no_folder_to_watch() -> None:
    assert model_files("Qwen/Qwen2.5-VL-7B-Instruct") is None


def test_engine_that_would_start_again_with_other_weights_is_left_out(
    tmp_path: Path, model: Path
) -> None:
    make_input(tmp_path, 1)
    make_gated(tmp_path)
    flags = ["-dp=2", "--max-num-seqs=1", "--max-engine-restarts=1", f"--model={model}"]
    out = tmp_path / "out"
    job = start(*input_flags(tmp_path), f"--output={out}", *flags, command=FAKE)

    def pids() -> list[int]:
        engines = status(out).get("engines", [])
        found = [engine["pid"] for engine in engines if engine["state"] == "up"]
        return found if len(found) == 2 else []

    first, _ = wait_until(pids, job)
    os.utime(model / "model.safetensors", ns=(1, 1))
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: status(out)["engines"][0]["state"] == "retired", job)
    (tmp_path / "raw" / "gate").touch()
    _, told = job.communicate(timeout=60)
    assert job.returncode == 0, told
    assert "Engine 0 did not start and is taken out: --model" in told
    assert "model.safetensors has changed since the run began" in told
    assert "Traceback" not in told
