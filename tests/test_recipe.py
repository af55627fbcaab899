"""What counts as the same way of making a caption, and how that is kept."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.job import FAKE, input_flags, make_input, rows, run

from vllm_caption.captions.prompt import load_prompt
from vllm_caption.config import EngineConfig, ImageConfig, SamplingConfig
from vllm_caption.engine_flags import given_flags, named_flags
from vllm_caption.errors import RunStopped
from vllm_caption.store.recipe import (
    ENGINE_FLAGS,
    IMAGE_SETTINGS,
    SAMPLING_SETTINGS,
    Recipe,
    ids_of,
    made_with,
    make_recipe,
    read_recipes,
    record_recipe,
)

SECTIONS: dict[str, Any] = {
    "engine": EngineConfig(),
    "sampling": SamplingConfig(),
    "image": ImageConfig(),
}
COUNTED = {
    *(("image", name) for name in IMAGE_SETTINGS),
    *(("sampling", name) for name in SAMPLING_SETTINGS),
    ("engine", "model"),
}


def recipe_of(**sections: Any) -> Recipe:
    return make_recipe(prompt=load_prompt("shape-brief"), **(SECTIONS | sections))


def recipe_id(*engine_args: str) -> str:
    return recipe_of(engine=EngineConfig(engine_args=engine_args)).id


def another(value: Any) -> Any:
    """A value other than the default of a setting."""
    if value is None:
        return 7
    if isinstance(value, bool):
        return not value
    return (*value, "x") if isinstance(value, tuple) else value + type(value)(1)


@pytest.mark.parametrize(
    ("section", "name"),
    [(section, f.name) for section, config in SECTIONS.items() for f in fields(config)],
)
def test_recipe_changes_with_settings_that_change_the_words_and_with_no_others(
    section: str, name: str
) -> None:
    config = SECTIONS[section]
    changed = replace(config, **{name: another(getattr(config, name))})
    assert (recipe_of(**{section: changed}).id != recipe_of().id) == ((section, name) in COUNTED)


def test_allowing_larger_images_makes_no_caption_stale() -> None:
    assert recipe_of(image=ImageConfig(max_image_pixels=10**9)).id == recipe_of().id


def test_every_sampling_setting_counts() -> None:
    assert {f.name for f in fields(SamplingConfig)} == set(SAMPLING_SETTINGS)


def test_prompt_counts_by_its_text_and_rules_not_by_its_name(tmp_path: Path) -> None:
    def id_of(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        return make_recipe(prompt=load_prompt(str(path)), **SECTIONS).id

    first = id_of("a.md", "---\nmax_words: 30\n---\nDescribe it.")
    assert id_of("b.md", "---\nmax_words: 30\n---\nDescribe it.") == first
    assert id_of("c.md", "---\nmax_words: 20\n---\nDescribe it.") != first
    assert id_of("d.md", "---\nmax_words: 30\n---\nName it.") != first


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
def test_flags_of_vllm_are_recognised_however_they_are_written(
    words: list[str], named: dict[str, str]
) -> None:
    assert named_flags(words) == named


def test_part_of_a_value_is_recognised_by_the_name_before_its_dot() -> None:
    assert given_flags(["--limit-mm-per-prompt.image=2"]) == {"limit_mm_per_prompt"}


@pytest.mark.parametrize(
    "flags",
    [
        *([f"--{name.replace('_', '-')}=x"] for name in ENGINE_FLAGS),
        ["--mm-processor-kwargs={}"],
        ["--hf-overrides.x=1"],
    ],
)
def test_flag_that_changes_the_words_changes_the_recipe(flags: list[str]) -> None:
    assert recipe_id(*flags) != recipe_id()


def test_equal_settings_have_one_recipe_however_they_are_written() -> None:
    assert recipe_id("-q", "fp8") == recipe_id("--quantization=fp8")


def test_flag_that_only_changes_the_speed_keeps_the_recipe() -> None:
    assert recipe_id("--gpu-memory-utilization=0.5") == recipe_id()


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": {"model": "\xff"}}', b"[]"])
def test_damaged_recipes_are_moved_aside_and_the_run_continues(
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


DEEP = b"[" * 100_000


@pytest.mark.parametrize("content", [b"\xff", b'{"a": {"sampling": {"b": ' + DEEP])
def test_reading_damaged_recipes_fails_with_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recipes.json").write_bytes(content)
    with pytest.raises(RunStopped, match=r"recipes\.json is damaged"):
        read_recipes(tmp_path)


def test_recipes_of_earlier_runs_stay(tmp_path: Path) -> None:
    for name in ("shape-brief", "shape-zh"):
        assert record_recipe(tmp_path, make_recipe(prompt=load_prompt(name), **SECTIONS)) is None
    assert {recipe.prompt_name for recipe in read_recipes(tmp_path).values()} == {
        *("shape-brief", "shape-zh")
    }


def test_captions_of_a_version_with_other_ids_for_the_same_recipe_are_not_stale(
    tmp_path: Path,
) -> None:
    files = make_input(tmp_path, 4)
    output, flags = tmp_path / "out", (*input_flags(tmp_path), "--quiet")
    assert run(*flags, f"--output={output}", "--limit=2", command=FAKE).exit_code == 0
    ((id_, recipe),) = read_recipes(output).items()
    earlier = msgspec.structs.replace(recipe, image=recipe.image | {"max_image_pixels": 5})
    (output / "recipes.json").write_bytes(msgspec.json.encode({"0123456789ab": earlier}))
    (part,) = (output / "manifest.parquet").iterdir()
    rename_recipe(part, id_, "0123456789ab")
    result = run(*flags, f"--output={output}", "--redo=stale", command=FAKE)
    assert "Items: 4, captioned 4 (2 in this run)" in result.stdout
    assert "recipe" not in result.stdout
    assert [rows(output)[file]["recipe_id"] for file in files] == ["0123456789ab"] * 2 + [id_] * 2
    assert set(read_recipes(output)) == {"0123456789ab", id_}


def rename_recipe(part: Path, old: str, new: str) -> None:
    """In every row of a part."""
    table = pq.read_table(part)
    place = table.schema.get_field_index("recipe_id")
    assert set(table["recipe_id"].to_pylist()) == {old}
    renamed = pa.array([new] * len(table), pa.string())
    pq.write_table(table.set_column(place, table.schema.field(place), renamed), part)


def test_recipe_with_other_content_is_not_mistaken_for_the_same(tmp_path: Path) -> None:
    other = recipe_of(sampling=SamplingConfig(max_tokens=5))
    record_recipe(tmp_path, other)
    assert ids_of(recipe_of(), tmp_path) == {recipe_of().id}


def test_stale_captions_are_counted_by_the_settings_that_made_them(tmp_path: Path) -> None:
    ours = recipe_of(
        engine=EngineConfig(model="ours", engine_args=("--quantization=fp8",)),
        sampling=SamplingConfig(stop=("a b", "c"), temperature=0.5),
    )
    others = [
        recipe_of(engine=EngineConfig(model="theirs"), sampling=SamplingConfig(seed=7)),
        recipe_of(
            engine=EngineConfig(model="ours", engine_args=("--dtype", "half")),
            sampling=SamplingConfig(ignore_eos=True, stop=("a b",), temperature=0.5),
            image=ImageConfig(max_side=512),
        ),
        make_recipe(
            EngineConfig(model="ours", engine_args=("--quantization=fp8",)),
            load_prompt("shape-zh"),
            SamplingConfig(stop=("a b", "c"), temperature=0.5),
            ImageConfig(),
        ),
        msgspec.structs.replace(ours, prompt="Describe it."),
    ]
    for other in others:
        record_recipe(tmp_path, other)
    captions = {other.id: number for number, other in enumerate(others, start=1)}
    assert made_with(captions | {"lost": 20, "": 1}, ours, tmp_path) == {
        "with settings that are not recorded": 21,
        "with another text of --prompt shape-brief": 4,
        "with --prompt shape-zh": 3,
        "with --max-side 512, --stop 'a b', --ignore-eos, --dtype half"
        " and without --quantization": 2,
        "with --model theirs, --temperature 0.0, --seed 7 and without --stop, --quantization": 1,
    }
