"""The check before a run renders a request like those of the run; a failure is one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.job import Result, input_flags, make_input, rows, run_here

from vllm_caption.captions.prompt import load_prompt
from vllm_caption.captions.question import make_question
from vllm_caption.demo import MODEL_DIR
from vllm_caption.inputs.documents import longest_item

REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
)
DROPS_SYSTEM = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"


def caption(folder: Path, *flags: str) -> Result:
    """A run over two items into ``folder/out``."""
    make_input(folder, 2)
    return run_here(*input_flags(folder), f"--output={folder / 'out'}", "-dp=1", "--quiet", *flags)


def refusal(result: Result, output: Path) -> str:
    """The one line of a run that was refused before an engine started."""
    checking, *said = result.stderr.splitlines()
    assert (result.exit_code, len(said)) == (2, 1), result.stderr
    assert checking.startswith("Checking")
    assert not list(output.glob("logs/engine-*.log"))
    assert not rows(output)
    return said[0]


def with_template(folder: Path, begin: str) -> str:
    """The bundled model with another start of its chat template."""
    model = folder / "model"
    shutil.copytree(MODEL_DIR, model)
    template = model / "chat_template.jinja"
    template.write_text(begin + template.read_text())
    return f"--model={model}"


def with_system(folder: Path) -> str:
    """A prompt file with a system text."""
    path = folder / "asked.md"
    path.write_text("---\nsystem: You are terse.\n---\nDescribe the shape.\n")
    return f"--prompt={path}"


def test_question_contains_the_longest_values_that_an_input_can_have() -> None:
    question = make_question(load_prompt("design-context"), longest_item())
    assert question.plain.user.startswith("This element belongs to a design. Describe")
    assert len(question.longest.user) > 2 * 500 + 64 * 99


@pytest.mark.engine
@pytest.mark.parametrize(
    ("flags", "field"),
    [
        (("--max-tokens=3000",), "--max-tokens 3000: the prompt and the largest image take"),
        (("--max-model-len=120",), "--max-tokens 100: the prompt and the largest image take"),
        (("--max-model-len=16",), "raise --max-model-len"),
    ],
)
def test_prompt_and_image_that_leave_no_room_for_a_caption_are_refused_with_a_remedy(
    tmp_path: Path, flags: tuple[str, ...], field: str
) -> None:
    result = caption(tmp_path, "--model=demo", *flags)
    said = refusal(result, tmp_path / "out")
    assert field in said
    assert "raise --max-model-len" in said


@pytest.mark.engine
@pytest.mark.parametrize(
    ("begin", "why"),
    [
        (REFUSES_SYSTEM, "cannot be asked this (no system"),
        (DROPS_SYSTEM, "leaves the prompt's `system` text out; move it below the front matter"),
    ],
)
def test_system_text_that_the_models_template_rejects_is_refused(
    tmp_path: Path, begin: str, why: str
) -> None:
    result = caption(tmp_path, with_template(tmp_path, begin), with_system(tmp_path))
    said = refusal(result, tmp_path / "out")
    assert said.startswith("vllm-caption: error: --prompt asked: ")
    assert why in said


@pytest.mark.engine
def test_prompt_with_a_system_text_that_the_template_accepts_runs(tmp_path: Path) -> None:
    result = caption(tmp_path, "--model=demo", with_system(tmp_path), "--no-checks")
    assert result.exit_code == 0, result.stderr


@pytest.mark.engine
def test_metadata_that_may_be_too_long_is_a_warning(tmp_path: Path) -> None:
    flags = ("--model=demo", "--prompt=design-context", "--max-model-len=400", "--no-checks")
    result = caption(tmp_path, *flags)
    assert result.exit_code == 0, result.stderr
    assert "An element with very long metadata may not fit" in result.stderr


@pytest.mark.engine
@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_damaged_tokenizer_is_refused_on_one_line_that_names_the_model(
    tmp_path: Path, damage: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(MODEL_DIR, model)
    tokenizer = model / "tokenizer.json"
    if damage == "missing":
        tokenizer.unlink()
    else:
        tokenizer.write_bytes(b"" if damage == "empty" else tokenizer.read_bytes()[:2000])
    said = refusal(caption(tmp_path, f"--model={model}"), tmp_path / "out")
    assert said.startswith(f"vllm-caption: error: --model {model}: ")
    assert "tokenizer" in said
