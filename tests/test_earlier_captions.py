"""Captions of earlier runs, found by content and prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vllm_caption.store.checkpoint import Checkpoint
from vllm_caption.store.earlier_captions import read_earlier
from vllm_caption.store.rows import Row, hash_of

KEY = bytes(range(16))


def row(file: str, key: bytes | None = KEY, **columns: Any) -> Row:
    columns = {"status": "captioned", "caption": "x", "recipe_id": "r", **columns}
    columns |= {"twin_key": key and key.hex(), "finished_at": 0, "run_id": "1"}
    return Row(file=file, document="d", element_index=0, element_type="SvgElement", **columns)


def found(root: Path, *rows: Row, key: bytes = KEY) -> str | None:
    checkpoint = Checkpoint(root, interval=2)
    for each in rows:
        checkpoint.append(each)
    checkpoint.close()
    made = read_earlier(root, ["r"], len(checkpoint.states())).get(key)
    assert made is None or made.text_hash == hash_of("x")
    return made and made.file


def test_caption_with_the_same_key_is_found_among_many_over_several_parts(tmp_path: Path) -> None:
    others = [row(f"{number}.png", number.to_bytes(16, "big")) for number in range(1, 100)]
    assert found(tmp_path, *others, key=(57).to_bytes(16, "big")) == "57.png"


def test_fields_that_a_caption_was_made_from_are_found_with_it(tmp_path: Path) -> None:
    plain = row("a.png", bytes(16))
    assert found(tmp_path, plain, row("b.png", structured='{"shape":"star"}')) == "b.png"
    made = read_earlier(tmp_path, ["r"], 0)
    assert [m and m.structured for m in map(made.get, (KEY, bytes(16)))] == [
        '{"shape":"star"}',
        None,
    ]


def test_key_with_only_the_same_first_half_does_not_match(tmp_path: Path) -> None:
    alike = KEY[:8] + bytes(8)
    assert found(tmp_path, row("a.png", alike), row("b.png", None)) is None


def test_second_of_two_keys_with_the_same_first_half_is_found(tmp_path: Path) -> None:
    assert found(tmp_path, row("a.png", KEY[:8] + bytes(8)), row("b.png")) == "b.png"


def test_empty_folder_offers_nothing(tmp_path: Path) -> None:
    assert found(tmp_path) is None


@pytest.mark.parametrize(
    "last",
    [
        row("a.png", flags=("too_long",)),
        row("a.png", recipe_id="other"),
        row("a.png", status="failed", caption=None),
        row("a.png", None, recipe_id=None),
    ],
)
def test_caption_whose_last_row_cannot_be_used_is_not_offered(tmp_path: Path, last: Row) -> None:
    assert found(tmp_path, row("a.png"), last) is None
