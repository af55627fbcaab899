from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import CRELLO_LIKE

from vllm_caption.config import InputConfig
from vllm_caption.errors import UsageError
from vllm_caption.images.files import check_images_root
from vllm_caption.inputs.designs import Designs, document_names
from vllm_caption.inputs.reader import InputReader
from vllm_caption.items import BadEntry, Item, SkippedDocument

MISSING = object()
SHAPE = "SvgElement"
Found = list[Item | BadEntry | SkippedDocument]


class Folders:
    """An input that a test fills document by document."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.config = InputConfig(root / "jsons", root / "json_detail", root / "raw", **settings)
        for folder in (self.config.jsons, self.config.json_detail, self.config.images_root):
            folder.mkdir(exist_ok=True)

    def put(self, name: str, files: list[Any], types: list[Any], **detail: Any) -> None:
        images = [{"file": file} for file in files]
        self.put_raw(name, {"images": images}, {"images": files, "types": types, **detail})

    def put_raw(self, name: str, design: Any, detail: Any) -> None:
        for folder, value in ((self.config.jsons, design), (self.config.json_detail, detail)):
            if value is not MISSING:
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                (folder / f"{name}.json").write_bytes(data)

    def read(self) -> Found:
        return list(InputReader(self.config))


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def files_of(found: Found) -> list[str]:
    return [item.file for item in found if isinstance(item, Item)]


def only_skip(found: Found) -> SkippedDocument:
    (skip,) = found
    assert isinstance(skip, SkippedDocument)
    return skip


# ---------------------------------------------------------------------------------- items
def test_item_carries_the_metadata_of_its_document(folders: Folders) -> None:
    design = {"images": [{"file": "t.png"}, {"file": "a/图.png"}], "width": 1080, "height": 19.5}
    texts = {"category": "poster", "title": " 春节 ", "keywords": ["红", 5, None, ""]}
    folders.put_raw("doc", design, {"images": [0, 0], "types": ["TextElement", SHAPE], **texts})
    (item,) = folders.read()
    assert isinstance(item, Item)
    assert (item.file, item.element_index, item.element_type) == ("a/图.png", 1, SHAPE)
    document = item.document
    assert (document.name, document.category, document.title) == ("doc", "poster", "春节")
    assert document.keywords == ("红", "5")
    assert (document.canvas_width, document.canvas_height) == (1080, 19.5)


def test_file_named_by_several_documents_is_one_item_of_the_first_document(
    folders: Folders,
) -> None:
    folders.put("b", ["x.png", "y.png"], [SHAPE, SHAPE])
    folders.put("a", ["x.png", "x.png"], [SHAPE, "ColoredBackground"])
    reader = InputReader(folders.config)
    items = [found for found in reader if isinstance(found, Item)]
    assert [(item.file, item.document.name) for item in items] == [("x.png", "a"), ("y.png", "b")]
    assert (reader.counts.items, reader.counts.duplicates) == (2, 2)


def test_names_are_distinct_unless_exactly_equal(folders: Folders) -> None:
    names = ["fs/é.png", "fs/e\u0301.png", "A.png", "a.png", "./a.png", " a.png", "a.png\n"]
    folders.put("doc", names, [SHAPE] * len(names))
    assert files_of(folders.read()) == names


@pytest.mark.parametrize("skipped", ["TextElement", "textElement", "ImageElement", "IMAGEELEMENT"])
def test_text_and_photo_elements_are_skipped_whatever_their_case(
    folders: Folders, skipped: str
) -> None:
    folders.put("doc", [None, "b.png"], [skipped, SHAPE])
    assert files_of(folders.read()) == ["b.png"]


@pytest.mark.parametrize(
    ("kind", "recorded"),
    [("TextElement ", "TextElement "), ("", ""), (3, "3"), (None, "null"), (["T"], '["T"]')],
)
def test_any_other_type_is_captioned_and_recorded_as_text(
    folders: Folders, kind: Any, recorded: str
) -> None:
    folders.put("doc", ["b.png"], [kind])
    (item,) = folders.read()
    assert isinstance(item, Item)
    assert item.element_type == recorded


def test_skip_types_of_the_configuration_replace_the_default(tmp_path: Path) -> None:
    folders = Folders(tmp_path, skip_types=("svgelement",))
    folders.put("doc", ["a.png", "b.png"], [SHAPE, "TextElement"])
    assert files_of(folders.read()) == ["b.png"]


@pytest.mark.parametrize(
    ("entry", "shown", "reason"),
    [
        ({"file": None}, "null", "`file` is null, not a string"),
        ({"file": 5}, "5", "`file` is a number, not a string"),
        ({"file": True}, "true", "`file` is a boolean, not a string"),
        ({"file": ["a"]}, '["a"]', "`file` is a list, not a string"),
        ({"file": {"a": 1}}, '{"a": 1}', "`file` is an object, not a string"),
        ({"file": ""}, "", "`file` is empty"),
        ({"file": "a\0.png"}, "a\\u0000.png", "NUL"),
        ({"file": "\ud800.png"}, "\\ud800.png", "surrogate"),
        ({}, "", "has no `file`"),
        (None, "null", "the element is null"),
        ("a.png", "a.png", "the element is a string"),
    ],
)
def test_unusable_file_becomes_a_bad_entry_and_its_neighbours_stay(
    folders: Folders, entry: Any, shown: str, reason: str
) -> None:
    design = {"images": [{"file": "ok.png"}, entry]}
    folders.put_raw("doc", design, {"images": [0, 0], "types": [SHAPE, SHAPE]})
    item, bad = folders.read()
    assert isinstance(item, Item)
    assert isinstance(bad, BadEntry)
    assert (bad.document, bad.element_index, bad.element_type) == ("doc", 1, SHAPE)
    assert bad.file == shown
    assert reason in bad.reason


# ------------------------------------------------------------------------------- metadata
@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        (None, ()),
        ("red, blue，green", ("red", "blue", "green")),
        ([1, "a", None, ["b"], True, 2.5, " "], ("1", "a", "2.5")),
        ({"a": 1}, ()),
        (7, ()),
        (["k"] * 1000, ("k",) * 64),
    ],
)
def test_keywords_in_any_form_become_a_bounded_list_of_texts(
    folders: Folders, keywords: Any, expected: tuple[str, ...]
) -> None:
    folders.put("doc", ["a.png"], [SHAPE], keywords=keywords)
    (item,) = folders.read()
    assert isinstance(item, Item)
    assert item.document.keywords == expected


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        (None, None),
        ("  ", None),
        (2024, "2024"),
        (False, None),
        (["a"], None),
        ("x" * 999, "x" * 500),
    ],
)
def test_title_that_is_not_text_counts_as_missing(
    folders: Folders, title: Any, expected: str | None
) -> None:
    folders.put("doc", ["a.png"], [SHAPE], title=title)
    (item,) = folders.read()
    assert isinstance(item, Item)
    assert item.document.title == expected


@pytest.mark.parametrize(
    "size", [None, "-3.5", -1, 0, True, [], 10**400, float("nan"), float("inf")]
)
def test_impossible_canvas_size_counts_as_missing(folders: Folders, size: Any) -> None:
    folders.put_raw(
        "doc",
        {"images": [{"file": "a.png"}], "width": size, "height": 7},
        {"images": [0], "types": [SHAPE]},
    )
    (item,) = folders.read()
    assert isinstance(item, Item)
    assert (item.document.canvas_width, item.document.canvas_height) == (None, 7)


def test_lone_surrogate_in_a_title_is_replaced_so_that_it_can_be_written(folders: Folders) -> None:
    folders.put("doc", ["a.png"], [SHAPE], title="a\ud800b", keywords=["\udfff"])
    (item,) = folders.read()
    assert isinstance(item, Item)
    assert (item.document.title, item.document.keywords) == ("a\ufffdb", ("\ufffd",))


# ------------------------------------------------------------------- documents left out
GOOD = {"images": [{"file": "a.png"}]}
DETAIL = {"images": [0], "types": [SHAPE]}
BROKEN_SIDES: list[tuple[Any, str, str]] = [
    (b"", "invalid_json", "it is empty"),
    (b"{", "invalid_json", "is not JSON"),
    (b'{"images": []} {}', "invalid_json", "Extra data"),
    (b'{"x": "a\nb", "images": [1]}', "invalid_json", "control character"),
    (b'{"x": ' + b"9" * 5000 + b"}", "invalid_json", "4300 digits"),
    (b"[" * 100_000 + b"]" * 100_000, "invalid_json", "nested too deeply"),
    (b'{"a":' * 100_000, "invalid_json", "nested too deeply"),
    (b'{"images": [], "x": "\xe9"}', "bad_encoding", "is not UTF-8"),
    (json.dumps(GOOD).encode("utf-16"), "bad_encoding", "is not UTF-8"),
    ([], "not_object", "is a list, not an object"),
    ("images", "not_object", "is a string, not an object"),
    (None, "not_object", "is null, not an object"),
    (True, "not_object", "is a boolean, not an object"),
    (1.5, "not_object", "is a number, not an object"),
    ({}, "missing_key", "has no `images`"),
    ({"images": None, "types": [SHAPE]}, "bad_type", "is null, not a list"),
    ({"images": {"0": 1}, "types": [SHAPE]}, "bad_type", "is an object, not a list"),
    ({"images": "x", "types": [SHAPE]}, "bad_type", "is a string, not a list"),
]


@pytest.mark.parametrize(("value", "kind", "words"), BROKEN_SIDES)
@pytest.mark.parametrize("side", ["design", "detail"])
def test_broken_side_skips_the_document_and_is_named(
    folders: Folders, side: str, value: Any, kind: str, words: str
) -> None:
    folders.put_raw("bad", *((value, DETAIL) if side == "design" else (GOOD, value)))
    skip = only_skip(folders.read())
    assert (skip.document, skip.kind) == ("bad", kind)
    assert side in skip.reason
    assert words in skip.reason


@pytest.mark.parametrize(
    ("detail", "kind", "words"),
    [
        (MISSING, "missing_detail", "no detail"),
        ({"images": [0]}, "missing_key", "`types`"),
        ({"images": [0], "types": None}, "bad_type", "`types`"),
        ({"images": [], "types": [SHAPE]}, "length_mismatch", "1 images, the detail 0"),
        ({"images": [0, 0], "types": [SHAPE]}, "length_mismatch", "1 images, the detail 2"),
        ({"images": [0], "types": []}, "types_length", "1 images, the detail 0 types"),
        ({"images": [0], "types": [SHAPE] * 3}, "types_length", "1 images, the detail 3 types"),
    ],
)
def test_detail_that_does_not_fit_its_design_skips_the_document(
    folders: Folders, detail: Any, kind: str, words: str
) -> None:
    folders.put_raw("bad", GOOD, detail)
    folders.put("good", ["b.png"], [SHAPE])
    skip, item = folders.read()
    assert isinstance(skip, SkippedDocument)
    assert skip.kind == kind
    assert words in skip.reason
    assert isinstance(item, Item)


@pytest.mark.parametrize(
    "design",
    [
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        b'{"images": [{"file": "a.png"}], "x": [NaN, Infinity, -Infinity], "width": 1e999}',
        b'{"images": [{"file": "first.png"}], "images": [{"file": "a.png"}]}',
        b'{"images": [{"file": "a.png"}], "x": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"images": [{"file": "a.png"}], "width": ' + b"9" * 400 + b"}",
        b'{\r\n\t"images" : [ {"file": "a.png"} ]\r\n}\r\n',
    ],
    ids=["bom", "nan", "duplicate-keys", "deep", "long-number", "crlf"],
)
def test_unusual_but_valid_json_is_accepted(folders: Folders, design: bytes) -> None:
    folders.put_raw("doc", design, DETAIL)
    assert files_of(folders.read()) == ["a.png"]


@pytest.mark.parametrize("side", ["jsons", "json_detail"])
@pytest.mark.parametrize("thing", ["fifo", "folder", "socket", "device"])
def test_document_that_is_not_a_regular_file_is_skipped_without_blocking(
    tmp_path: Path, side: str, thing: str
) -> None:
    folders = Folders(tmp_path)
    folders.put_raw("d", GOOD, DETAIL)
    path = tmp_path / side / "d.json"
    path.unlink()
    if thing == "fifo":
        os.mkfifo(path)
    elif thing == "folder":
        path.mkdir()
    elif thing == "device":
        path.symlink_to("/dev/zero")
    else:
        _make_socket(path)
    assert only_skip(folders.read()).kind == "not_a_file"


def _make_socket(path: Path) -> None:
    # Bound under a short name: a socket's path has room for 108 bytes only.
    with tempfile.TemporaryDirectory(dir="/tmp") as short, socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{short}/s")
        os.rename(f"{short}/s", path)


@pytest.mark.parametrize("side", ["jsons", "json_detail"])
@pytest.mark.parametrize("target", ["nowhere.json", "d.json"], ids=["dangling", "loop"])
def test_dangling_or_circular_link_is_unreadable(tmp_path: Path, side: str, target: str) -> None:
    folders = Folders(tmp_path)
    folders.put_raw("d", GOOD, DETAIL)
    path = tmp_path / side / "d.json"
    path.unlink()
    path.symlink_to(target)
    assert only_skip(folders.read()).kind == "unreadable"


# ------------------------------------------------------------------ names and the reader
def test_document_names_are_the_sorted_visible_json_files_of_the_folder(
    folders: Folders,
) -> None:
    for name in ["b.json", "a-b.json", "a.json", ".c.json", ".json", "d.JSON", "e.json~", "f"]:
        (folders.config.jsons / name).touch()
    (folders.config.jsons / "nested").mkdir()
    (folders.config.jsons / "nested" / "g.json").touch()
    assert document_names(folders.config.jsons) == ["a", "a-b", "b"]


def test_document_name_that_is_not_utf8_is_read_and_recorded_encodable(folders: Folders) -> None:
    for folder, value in ((folders.config.jsons, GOOD), (folders.config.json_detail, DETAIL)):
        Path(os.fsdecode(os.fsencode(folder) + b"/d_\xff.json")).write_text(json.dumps(value))
    (item,) = folders.read()
    assert isinstance(item, Item)
    assert item.document.name == "d_\\xff"
    (folders.config.json_detail / os.fsdecode(b"d_\xff.json")).unlink()
    assert only_skip(folders.read()).document == "d_\\xff"


@pytest.mark.parametrize(("limit", "expected"), [(0, []), (2, ["a", "b"]), (9, ["a", "b", "c"])])
def test_limit_stops_reading_after_the_first_items(
    tmp_path: Path, limit: int, expected: list[str]
) -> None:
    folders = Folders(tmp_path, limit=limit)
    folders.put("1", ["a", "a"], [SHAPE, SHAPE])
    folders.put("2", ["b", "c"], [SHAPE, SHAPE])
    reader = InputReader(folders.config)
    assert files_of(list(reader)) == expected
    assert reader.complete == (limit == 9)


def test_counts_follow_the_iteration(folders: Folders) -> None:
    folders.put("1", ["a", "t"], [SHAPE, "TextElement"])
    folders.put("2", ["a", "b", 5], [SHAPE, "MaskElement", SHAPE])
    folders.put("3", ["t"], ["textElement"])
    folders.put_raw("4", b"", DETAIL)
    folders.put("5", [], [])
    reader = InputReader(folders.config)
    found = iter(reader)
    next(found)
    assert (reader.counts.documents, reader.counts.items, reader.complete) == (1, 1, False)
    list(found)
    counts = reader.counts
    assert (counts.documents, counts.skipped, counts.documents_without_items) == (5, 1, 2)
    assert (counts.elements, counts.references) == (6, 4)
    assert (counts.items, counts.duplicates, counts.bad_entries) == (2, 1, 1)
    assert counts.skipped_elements == {"TextElement": 1, "textElement": 1}
    assert counts.elements_by_type[SHAPE] == 3


def test_reading_again_gives_the_same_items_and_counts(folders: Folders) -> None:
    folders.put("1", ["a", "a"], [SHAPE, SHAPE])
    reader = InputReader(folders.config)
    assert list(reader) == list(reader)
    assert (reader.counts.documents, reader.counts.items) == (1, 1)


@pytest.mark.parametrize(
    ("types", "settings", "expected"),
    [
        ([SHAPE, "Text"], {}, True),
        ([SHAPE, "textelement"], {}, False),
        ([SHAPE, "Text"], {"limit": 1}, False),
        ([SHAPE, "Text"], {"skip_types": ()}, False),
        (["", ""], {}, False),
        (["", "Text"], {}, True),
    ],
    ids=[
        *("none-skipped", "one-skipped", "not-read-whole", "nothing-to-skip"),
        *("without-types", "one-without-a-type"),
    ],
)
def test_no_type_was_skipped_is_known_only_after_the_whole_input(
    tmp_path: Path, types: list[str], settings: dict[str, Any], expected: bool
) -> None:
    folders = Folders(tmp_path, **settings)
    folders.put("1", ["a", "b"], types)
    reader = InputReader(folders.config)
    list(reader)
    assert reader.no_type_was_skipped is expected


# ------------------------------------------------------------------- folders, beforehand
def check_input(config: InputConfig) -> None:
    """What a run checks of its input before anything starts."""
    Designs(config).check()
    check_images_root(config.images_root)


def test_complete_input_passes_the_folder_check(folders: Folders) -> None:
    folders.put("1", ["a"], [SHAPE])
    check_input(folders.config)


@pytest.mark.parametrize(
    ("folder", "flag"),
    [("jsons", "--jsons"), ("json_detail", "--json-detail"), ("raw", "--images-root")],
)
@pytest.mark.parametrize("state", ["absent", "a file"])
def test_path_that_is_not_a_folder_is_refused_in_one_line_with_its_flag(
    tmp_path: Path, folder: str, flag: str, state: str
) -> None:
    folders = Folders(tmp_path)
    folders.put("1", ["a"], [SHAPE])
    path = tmp_path / folder
    shutil.rmtree(path)
    if state == "a file":
        path.touch()
    with pytest.raises(UsageError) as caught:
        check_input(folders.config)
    message = str(caught.value)
    assert message.startswith(f"{flag} {path}: ")
    assert ("does not exist" if state == "absent" else "is not a folder") in message
    assert "\n" not in message


def test_folder_that_cannot_be_opened_is_refused_with_the_cause(folders: Folders) -> None:
    loop = folders.config.images_root / "loop"
    loop.symlink_to("loop")
    config = InputConfig(loop, folders.config.json_detail, folders.config.images_root)
    with pytest.raises(UsageError, match="cannot be read \\(Too many levels of symbolic links\\)"):
        check_input(config)


def test_folder_without_any_design_is_refused(folders: Folders) -> None:
    (folders.config.jsons / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"--jsons .*holds no file ending in \.json"):
        check_input(folders.config)


# --------------------------------------------------------------------- any JSON anywhere
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters() | st.characters(categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("images", "types", "category", "title", "keywords", "width", "height")
NEAR_DOCUMENT = st.fixed_dictionaries(
    {}, optional={key: ANY_JSON | st.lists(ANY_JSON, min_size=2, max_size=2) for key in KEYS}
)
ENTRIES = st.lists(
    ANY_JSON | st.fixed_dictionaries({"file": ANY_JSON}), min_size=2, max_size=2
).map(lambda entries: {"images": entries})


@settings(max_examples=150)
@given(
    design=ANY_JSON | NEAR_DOCUMENT | ENTRIES | st.binary(),
    detail=ANY_JSON | NEAR_DOCUMENT | st.binary(),
)
@example(design={"images": [{"file": "\ud800"}] * 2}, detail={"images": [1, 1], "types": [[], {}]})
def test_any_json_in_any_place_yields_records_that_can_be_written(design: Any, detail: Any) -> None:
    with tempfile.TemporaryDirectory() as root:
        folders = Folders(Path(root))
        folders.put_raw("doc", design, detail)
        for found in folders.read():
            assert isinstance(found, Item | BadEntry | SkippedDocument)
            msgspec.json.encode(found)


# -------------------------------------------------------------------------------- corpora
def corpus_config(folder: Path) -> InputConfig:
    return InputConfig(folder / "jsons", folder / "json_detail", folder / "raw")


def test_crello_like_corpus_gives_exactly_the_expected_items() -> None:
    expected = json.loads((CRELLO_LIKE / "expected.json").read_text())
    reader = InputReader(corpus_config(CRELLO_LIKE))
    found = list(reader)
    items = [item for item in found if isinstance(item, Item)]
    skips = {s.document: s for s in found if isinstance(s, SkippedDocument)}
    assert {i.file for i in items} == set(expected["items"])
    assert len(items) == expected["counts"]["items"]
    assert {n: s.kind for n, s in skips.items()} == {
        name: entry["reason"] for name, entry in expected["skipped_documents"].items()
    }
    for item in items:
        assert item.document.name == min(expected["items"][item.file]["documents"])
        assert item.element_type in expected["items"][item.file]["types"]
    for name, entry in expected["skipped_documents"].items():
        for key in ("images", "detail_images"):
            assert str(entry.get(key, "")) in skips[name].reason


def test_crello_like_corpus_gives_the_expected_counts() -> None:
    expected = json.loads((CRELLO_LIKE / "expected.json").read_text())["counts"]
    reader = InputReader(corpus_config(CRELLO_LIKE))
    assert not any(isinstance(found, BadEntry) for found in reader)
    counts = reader.counts
    assert counts.documents == expected["documents"]
    assert counts.skipped == expected["documents_skipped"]
    assert counts.documents_without_items == expected["documents_without_shapes"]
    assert counts.references == expected["shape_references"]
    assert counts.elements_by_type == Counter(expected["element_types"])
    assert not reader.no_type_was_skipped


def test_hostile_corpus_gives_every_document_its_expected_outcome(
    hostile_corpus: Path,
) -> None:
    expected = json.loads((hostile_corpus / "expected.json").read_text())["documents"]
    reader = InputReader(corpus_config(hostile_corpus))
    found = list(reader)
    skipped = {s.document: s.kind for s in found if isinstance(s, SkippedDocument)}
    wanted = {name: doc["reason"] for name, doc in expected.items() if doc["outcome"] == "skipped"}
    assert skipped == wanted
    ignored = {name for name, doc in expected.items() if doc["outcome"] == "ignored"}
    read = set(document_names(hostile_corpus / "jsons"))
    assert read == set(expected) - ignored - {".d_hidden"}
    assert reader.counts.documents == len(read)


def test_hostile_corpus_gives_the_expected_items_and_bad_entries(
    hostile_corpus: Path,
) -> None:
    expected = json.loads((hostile_corpus / "expected.json").read_text())
    found = list(InputReader(corpus_config(hostile_corpus)))
    items = set(files_of(found))
    decided = {".d_hidden", "d_type_lowercase"}  # hidden: ignored; types compare without case
    for name, document in expected["documents"].items():
        if document["outcome"] == "ok" and name not in decided:
            assert items.issuperset(document.get("captions", ())), name
    assert not any(file.startswith(("skip/", "never/")) for file in items)
    assert "ok/d_type_lowercase.png" not in items
    bad = {(b.document, b.element_index) for b in found if isinstance(b, BadEntry)}
    cases = [case for case in expected["items"] if case["document"] != "i_conflict"]
    wanted = {(c["document"], c["index"]) for c in cases if c.get("kind") == "bad_name"}
    too_long_for_a_file_system = {("i_name_300", 2), ("i_path_5000", 2)}  # found when opened
    assert bad == wanted - too_long_for_a_file_system
    assert items.issuperset(c["file"] for c in cases if c["outcome"] == "captioned")
