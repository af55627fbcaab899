"""What counts as the same way of making a caption, and how that is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.job import FAKE, input_flags, make_input, run

from vllm_caption.captions.prompt import load_prompt
from vllm_caption.config import RunConfig
from vllm_caption.engine_flags import given_flags, named_flags
from vllm_caption.errors import RunStopped
from vllm_caption.store.recipe import make_recipe, read_recipes, record_recipe


def recipe_id(*engine_args: str) -> str:
    config = RunConfig()
    config = replace(config, engine=replace(config.engine, engine_args=engine_args))
    return make_recipe(config, load_prompt("shape-brief")).id


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--kv-cache-dtype", "fp8"], {"kv_cache_dtype": "fp8"}),
        (["--kv_cache_dtype=fp8"], {"kv_cache_dtype": "fp8"}),
        (["-q", "awq", "--enforce-eager"], {"quantization": "awq", "enforce_eager": ""}),
        (["--hf-overrides.a.b", "1"], {"hf_overrides.a.b": "1"}),
        (["--seeds", "-1", "2"], {"seeds": "-1 2"}),
        ([], {}),
    ],
)
def test_flags_of_vllm_are_known_however_they_are_written(
    words: list[str], named: dict[str, str]
) -> None:
    assert named_flags(words) == named


def test_part_of_a_value_is_known_by_the_name_before_its_dot() -> None:
    assert given_flags(["--limit-mm-per-prompt.image=2"]) == {"limit_mm_per_prompt"}


@pytest.mark.parametrize(
    "flags",
    [
        ["--quantization=fp8"],
        ["--kv-cache-dtype=fp8"],
        ["--mm-processor-kwargs={}"],
        ["--tokenizer-revision=x"],
        ["--hf-overrides.x=1"],
    ],
)
def test_flag_that_changes_the_words_makes_another_recipe(flags: list[str]) -> None:
    assert recipe_id(*flags) != recipe_id()


def test_one_setting_is_one_recipe_however_it_is_written() -> None:
    assert recipe_id("-q", "fp8") == recipe_id("--quantization=fp8")


def test_flag_that_only_changes_the_speed_makes_no_other_recipe() -> None:
    assert recipe_id("--gpu-memory-utilization=0.5") == recipe_id()


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": {"model": "\xff"}}', b"[]"])
def test_damaged_recipes_are_moved_aside_and_the_run_goes_on(
    tmp_path: Path, content: bytes
) -> None:
    make_input(tmp_path, 2)
    output = tmp_path / "out"
    output.mkdir()
    (output / "recipes.json").write_bytes(content)
    result = run(*input_flags(tmp_path), f"--output={output}", "--quiet", command=FAKE)
    assert result.exit_code == 0, result.stderr
    assert "recipes.json is damaged" in result.stderr
    assert "Traceback" not in result.stderr
    assert (output / "recipes.json.damaged").read_bytes() == content
    assert len(read_recipes(output)) == 1


def test_reading_damaged_recipes_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "recipes.json").write_bytes(b"\xff")
    with pytest.raises(RunStopped, match=r"recipes\.json is damaged"):
        read_recipes(tmp_path)


def test_recipes_of_earlier_runs_stay(tmp_path: Path) -> None:
    for name in ("shape-brief", "shape-zh"):
        assert record_recipe(tmp_path, make_recipe(RunConfig(), load_prompt(name))) is None
    assert {recipe.prompt_name for recipe in read_recipes(tmp_path).values()} == {
        *("shape-brief", "shape-zh")
    }
