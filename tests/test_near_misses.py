"""What the message about a missing file says about similar files."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from vllm_caption.errors import ItemError
from vllm_caption.images import near_misses
from vllm_caption.images.files import resolve_image
from vllm_caption.images.object_store import remote_bytes, remote_size

NFC, NFD = (unicodedata.normalize(form, "café.png") for form in ("NFC", "NFD"))


@pytest.fixture(autouse=True)
def forget_listings() -> None:
    near_misses.names_in.cache_clear()


def put(root: Path, *names: str) -> str:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return str(root)


def refusal(root: str, file: str) -> ItemError:
    with pytest.raises(ItemError) as caught:
        resolve_image(root, file)
    assert caught.value.reason.isprintable() and root not in caught.value.reason
    return caught.value


@pytest.mark.parametrize(
    ("there", "named", "how"),
    [
        ("sub/a.png", "sub\\a.png", "write / for \\"),
        ("sub/a.png", "C:\\sub\\a.png", "write / for \\"),
        ("sub/a.png", "SUB\\a.png", "write / for \\, and the letter case differs"),
        (NFC, NFD, "its letters are encoded in another Unicode form (NFC)"),
        (NFD, NFC, "its letters are encoded in another Unicode form (NFD)"),
        ("Star.PNG", "star.png", "the letter case differs"),
        ("Sub/Deep/Star.png", "sub/deep/STAR.png", "the letter case differs"),
        ("STRASSE.png", "straße.png", "the letter case differs"),
        ("a b.png", "a%20b.png", "its name is not percent-encoded"),
        ("a.png", "a.png\n", "the name has white space around it"),
        ("a.png", " a.png", "the name has white space around it"),
    ],
)
def test_near_miss_is_named_with_its_difference(
    tmp_path: Path, there: str, named: str, how: str
) -> None:
    error = refusal(put(tmp_path, there), named)
    assert error.kind == "missing_file"
    expected = f"there is no such file below the images root; {there} is there: {how}"
    assert error.reason == expected


@pytest.mark.parametrize(
    "named", ["b.png", "sub/b.png", "a.jpg", "..\\outside.png", "%2e%2e/outside.png", "x/y/z.png"]
)
def test_nothing_is_named_if_there_is_no_similar_file(tmp_path: Path, named: str) -> None:
    put(tmp_path, "outside.png")
    root = put(tmp_path / "root", "a.png", "sub/a.png")
    assert refusal(root, named).reason == "there is no such file below the images root"


def test_near_miss_that_has_disappeared_is_not_named(tmp_path: Path) -> None:
    root = put(tmp_path, "A.png", "other.png")
    assert "A.png is there" in refusal(root, "a.png").reason
    (tmp_path / "A.png").unlink()
    assert "is there" not in refusal(root, "a.png").reason


def test_folder_is_listed_once_and_a_large_one_only_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, listed = put(tmp_path, *(f"{n}.PNG" for n in range(30)), "Mixed.Png"), []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scan(path))
    for n in range(30):
        assert f"{n}.PNG is there" in refusal(root, f"{n}.png").reason
    assert len(listed) == 1
    near_misses.names_in.cache_clear()
    monkeypatch.setattr(near_misses, "MAX_LISTED", 10)
    assert "3.PNG is there: the letter case differs" in refusal(root, "3.png").reason
    assert "is there" not in refusal(root, "mixed.png").reason


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("https://example.org/a.png", "path_escape"),
        ("s3://bucket/a.png", "path_escape"),
        ("file:///a.png", "path_escape"),
        ("data:image/png;base64,iVBORw0KGgo=", "missing_file"),
    ],
)
def test_url_is_named_as_one_and_nothing_is_fetched(tmp_path: Path, file: str, kind: str) -> None:
    error = refusal(str(tmp_path), file)
    assert error.kind == kind
    assert "it is a URL, and nothing is fetched from the network" in error.reason


def test_near_spelling_in_an_object_store_is_named(tmp_path: Path) -> None:
    root = f"file://{put(tmp_path, 'sub/a b.png')}"
    for file, how in (("sub\\a b.png", "write / for \\"), ("sub/a%20b.png", "percent-encoded")):
        with pytest.raises(ItemError) as read:
            remote_bytes(root, file, 10)
        with pytest.raises(ItemError) as sized:
            remote_size(root, file)
        for caught in (read, sized):
            assert "sub/a b.png is there" in caught.value.reason
            assert how in caught.value.reason
    with pytest.raises(ItemError) as caught:
        remote_bytes(root, "sub/absent.png", 10)
    assert caught.value.reason == "there is no such object below the images root"
