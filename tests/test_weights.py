"""How large a model's weights are, and whether their files are complete, from their headers."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from vllm_caption.demo import MODEL_DIR
from vllm_caption.engines.model_folder import check_model_folder
from vllm_caption.engines.weights import INDEX, Weights, read_weights
from vllm_caption.errors import UsageError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 3950\n".format("0" * 64)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model, whose weights are one file."""
    return shutil.copytree(MODEL_DIR, tmp_path / "model")


def weights_file(path: Path, **tensors: tuple[str, int]) -> Path:
    """A sparse safetensors file of tensors, each a type and a number of bytes."""
    header, end = {}, 0
    for name, (dtype, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [size], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def refusal(folder: Path, *flags: str) -> str:
    with pytest.raises(UsageError) as refused:
        check_model_folder(str(folder), flags)
    return str(refused.value)


def test_the_bundled_model_is_whole_and_counted_by_type() -> None:
    weights = read_weights(MODEL_DIR)
    assert weights is not None
    size = sum(path.stat().st_size for path in MODEL_DIR.glob("*.safetensors"))
    assert 0.98 * size < weights.stored_bytes < size


@pytest.mark.parametrize(
    ("stored", "bytes_per_weight", "loaded"),
    [
        ({"BF16": 100}, 2, 100),
        ({"F32": 100}, 2, 50),
        ({"F16": 100}, 4, 200),
        ({"BF16": 100}, 0.5, 25),
        ({"I32": 100, "F16": 8}, 2, 108),
        ({"F8_E4M3": 100, "F32": 4}, 2, 102),
    ],
)
def test_floats_take_the_engines_precision_and_packed_weights_stay_as_they_are(
    stored: dict[str, int], bytes_per_weight: float, loaded: int
) -> None:
    assert Weights(stored).loaded_bytes(bytes_per_weight) == loaded


def test_the_index_says_which_files_count(tmp_path: Path) -> None:
    weights_file(tmp_path / "model-1.safetensors", a=("BF16", 10))
    weights_file(tmp_path / "model-2.safetensors", b=("F32", 20))
    weights_file(tmp_path / "another-copy.safetensors", a=("BF16", 30))
    files = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": files}))
    assert read_weights(tmp_path) == Weights({"BF16": 10, "F32": 20})


def test_weights_in_mistrals_format_win_over_a_second_copy(tmp_path: Path) -> None:
    files = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": files}))
    weights_file(tmp_path / "model-1.safetensors", a=("F32", 20))  # the other file does not exist
    weights_file(tmp_path / "consolidated.safetensors", a=("BF16", 10))
    assert read_weights(tmp_path) == Weights({"BF16": 10})


def test_a_weight_that_is_in_two_files_counts_once(tmp_path: Path) -> None:
    weights_file(tmp_path / "model.fp16.safetensors", a=("F16", 10))
    weights_file(tmp_path / "model.safetensors", a=("F16", 10), b=("F16", 2))
    assert read_weights(tmp_path) == Weights({"F16": 12})


def test_parts_that_are_not_loaded_do_not_count(tmp_path: Path) -> None:
    names = ["thinker.model.x", "talker.x", "token2wav.x", "mtp.x", "thinker.audio_tower.x"]
    weights_file(tmp_path / "model.safetensors", **dict.fromkeys(names, ("BF16", 10)))
    assert read_weights(tmp_path) == Weights({"BF16": 10})


@pytest.mark.parametrize(
    ("config", "counted"),
    [
        ({"tie_word_embeddings": False}, 20),
        ({"text_config": {"tie_word_embeddings": False}}, 20),
        ({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}}, 10),
        ({"tie_word_embeddings": True}, 10),
        ({}, 10),
        ([], 10),
    ],
)
def test_an_output_layer_counts_if_it_is_certainly_not_shared(
    tmp_path: Path, config: object, counted: int
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {"model.embed_tokens.weight": ("BF16", 10), "lm_head.weight": ("BF16", 10)}
    weights_file(tmp_path / "model.safetensors", **tensors)
    assert read_weights(tmp_path) == Weights({"BF16": counted})


def test_floats_that_the_config_quantises_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    weights_file(tmp_path / "model.safetensors", a=("BF16", 10))
    assert read_weights(tmp_path) == Weights({"BF16": 10}, packed_on_load=True)
    weights_file(tmp_path / "model.safetensors", a=("BF16", 10), b=("I32", 10))
    assert read_weights(tmp_path) == Weights({"BF16": 10, "I32": 10})


def test_a_trainers_files_are_not_weights(tmp_path: Path) -> None:
    for name in ("training_args.bin", "optimizer.bin", "optimizer.pt"):
        (tmp_path / name).write_bytes(bytes(400))
    assert read_weights(tmp_path) is None
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(40))
    assert read_weights(tmp_path) == Weights({"F32": 40})


def test_pytorch_weights_do_not_need_the_files_of_a_safetensors_index(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "x-1.safetensors"}}))
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(40))
    assert read_weights(tmp_path) == Weights({"F32": 40})
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(UsageError, match=r"lacks x-1\.safetensors"):
        read_weights(tmp_path)


def test_files_of_other_formats_are_counted_by_their_size(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(bytes(40))
    weights = read_weights(tmp_path)
    assert weights is not None
    assert weights.stored_bytes == 40
    assert weights.loaded_bytes(2) == 20


def test_a_folder_without_weights_has_none(tmp_path: Path) -> None:
    assert read_weights(tmp_path) is None


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_pointer_of_git_lfs_is_named(model: Path, name: str) -> None:
    (model / name).write_text(POINTER)
    assert refusal(model).startswith(f"--model {model / name}: is a Git LFS pointer, not the file")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.pth", "picture.png"])
def test_a_pointer_in_place_of_an_unused_file_does_not_matter(model: Path, name: str) -> None:
    (model / name).write_text(POINTER)
    assert check_model_folder(str(model), ()) is not None


def test_a_run_with_another_tokenizer_needs_none_in_the_folder(model: Path) -> None:
    (model / "tokenizer.json").write_text(POINTER)
    assert check_model_folder(str(model), ("--tokenizer", "other/model")) is not None


def test_a_run_with_another_config_needs_none_in_the_folder(model: Path) -> None:
    (model / "config.json").unlink()
    assert "holds no config.json" in refusal(model)
    for flag in ("--hf-config-path=other", "--config-format=mine", "--config=flags.yaml"):
        check_model_folder(str(model), (flag,))


def test_a_config_that_cannot_be_read_is_named(model: Path) -> None:
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace("{", '{"scale": -Infinity,', 1))
    assert check_model_folder(str(model), ()) is not None  # JSON as Python writes it
    (model / "config.json").write_text(config[:40])
    assert refusal(model).startswith(f"--model {model / 'config.json'}: is damaged; ")


def test_a_pipe_in_place_of_a_file_does_not_block(model: Path) -> None:
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    assert "model.safetensors: is not a file" in refusal(model)


def test_a_truncated_file_is_named_with_both_sizes(model: Path) -> None:
    path = model / "model.safetensors"
    whole = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(whole // 2)
    told = refusal(model)
    assert told.startswith(f"--model {path}: is cut short: {whole // 2:,} of {whole:,} bytes; ")


@pytest.mark.parametrize(
    "damaged", [b"", b"\0" * 7, b"\xff" * 200, b"<html>no such model</html>" * 20]
)
def test_a_file_without_a_readable_header_is_named(model: Path, damaged: bytes) -> None:
    (model / "model.safetensors").write_bytes(damaged)
    assert "model.safetensors: is not a safetensors file, or its beginning is damaged" in refusal(
        model
    )


@pytest.mark.parametrize(
    "header",
    [{}, {"a": 1}, {"a": {"dtype": "F16"}}, {"a": {"dtype": "F16", "data_offsets": ["x", 1]}}, []],
)
def test_a_header_of_another_shape_is_damage(model: Path, header: object) -> None:
    text = json.dumps(header).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(100)
    (model / "model.safetensors").write_bytes(data)
    assert "is not a safetensors file" in refusal(model)


def test_a_missing_file_of_several_is_named(model: Path) -> None:
    (model / INDEX).write_text(json.dumps({"weight_map": {"a": "x-1.safetensors"}}))
    assert "lacks x-1.safetensors, one of 1 files that its index lists" in refusal(model)


def test_a_damaged_index_is_named(model: Path) -> None:
    (model / INDEX).write_text('{"weight_map"')
    assert f"--model {model / INDEX}: is damaged" in refusal(model)


def test_a_load_format_that_needs_no_weights_checks_none(model: Path) -> None:
    (model / "model.safetensors").write_text(POINTER)
    assert check_model_folder(str(model), ("--load-format", "dummy")) is None
