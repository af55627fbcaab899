"""`--input`: a folder of images, or a table with a row for each, through the whole job with fake
engines."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.job import (
    FAKE,
    QUICK,
    Result,
    captions,
    draw_shape,
    input_flags,
    make_input,
    rows,
    run,
    run_here,
)

from vllm_caption.captions.prompt import load_prompt, render
from vllm_caption.config import InputConfig
from vllm_caption.errors import ItemError
from vllm_caption.images.files import num_bytes, read_image
from vllm_caption.inputs.choice import open_source
from vllm_caption.inputs.reader import InputReader
from vllm_caption.inputs.source import Group, files_left_out
from vllm_caption.items import BadEntry, Document, Item, SkippedDocument


def make_images(folder: Path, *files: str) -> list[str]:
    """Different ones; returns their names in order."""
    for number, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_shape(number).save(path, format="PNG")
    return sorted(files)


def job(path: Path, output: Path, *flags: str) -> Result:
    """One run over ``path``."""
    return run(f"--input={path}", f"--output={output}", *QUICK, *flags, command=FAKE)


def read(config: InputConfig) -> list[Item | BadEntry | SkippedDocument]:
    return list(InputReader(config))


def files_of(config: InputConfig) -> list[str]:
    return [entry.file for entry in read(config) if isinstance(entry, Item)]


# --- a folder of images --------------------------------------------------------------------------


def test_every_image_below_a_folder_is_captioned_and_a_rerun_does_nothing(tmp_path: Path) -> None:
    files = make_images(tmp_path / "in", "b.png", "a/x.JPG", "a/y.webp", "a.png", "c/d/e.gif")
    result = job(tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert captions(tmp_path / "out") == {file: f"caption of {file}" for file in files}
    made = rows(tmp_path / "out")
    assert made["a/x.JPG"]["image_path"] == str(tmp_path / "in/a/x.JPG")
    assert "--skip-types" not in result.stdout
    assert "(0 in this run)" in job(tmp_path / "in", tmp_path / "out").stdout


def test_folder_whose_images_come_between_subfolders_is_one_document(tmp_path: Path) -> None:
    make_images(tmp_path, "a/1.png", "b.png", "c/2.png", "d.png", "e/3.png")
    reader = InputReader(InputConfig(input=tmp_path, images_root=tmp_path, patterns=("a/*",)))
    assert len(list(reader)) == 1
    assert (reader.counts.documents, reader.counts.documents_without_items) == (4, 3)


def test_files_are_sorted_by_path(tmp_path: Path) -> None:
    names = ["a.png", "a/b.png", "a-b.png", "a/b/c.png", "b.png", "B.png", "ä.png"]
    files = make_images(tmp_path, *names)
    assert files_of(InputConfig(input=tmp_path, images_root=tmp_path)) == files


def test_hidden_files_other_files_and_the_output_are_skipped(tmp_path: Path) -> None:
    make_images(tmp_path, "a.png", ".hidden.png", ".git/b.png", "out/c.png", "notes.txt")
    (tmp_path / "link").symlink_to(tmp_path)
    config = InputConfig(input=tmp_path, images_root=tmp_path, without=(tmp_path / "out",))
    assert files_of(config) == ["a.png"]


def test_files_that_are_not_named_like_an_image_are_counted_by_ending(tmp_path: Path) -> None:
    names = ("a.heic", "b/c.HEIC", "d.svg", "e", "a.png.txt", "a.json", ".hidden.svg", "list.csv")
    make_images(tmp_path / "in", "a.png", *names)
    make_images(tmp_path / "in", "out/x.svg")
    wanted = "4 files are not named like an image and were left out: .heic 2, "
    output = tmp_path / "in/out"
    for said in (
        job(tmp_path / "in", output).stdout,
        run_here("plan", str(tmp_path / "in"), f"--output={output}").stdout,
    ):
        assert wanted in said
        assert {".svg 1", "no ending 1"} <= set(
            said.partition(wanted)[2].splitlines()[0].split(", ")
        )


def test_only_the_most_frequent_endings_are_listed() -> None:
    left_out = {".heic": 1200, **{f".{letter}": 2 for letter in "abcde"}}
    assert files_left_out(left_out) == (
        "1,210 files are not named like an image and were left out:"
        " .heic 1,200, .a 2, .b 2, .c 2, .d 2, others 2"
    )
    assert files_left_out({".svg": 1}) == (
        "1 file is not named like an image and was left out: .svg 1"
    )


def test_captions_may_lie_beside_their_images(tmp_path: Path) -> None:
    make_images(tmp_path, "a.png", "b/c.png")
    for in_this_run in (2, 0):
        result = job(tmp_path, tmp_path)
        assert (result.exit_code, f"({in_this_run} in this run)" in result.stdout) == (0, True)
    assert (tmp_path / "b/c.png.txt").read_text() == "caption of b/c.png"


def test_images_of_a_folder_are_numbered_consecutively_across_a_subfolder(
    tmp_path: Path,
) -> None:
    make_images(tmp_path, "a.png", "b/x.png", "c.png")
    found = [entry for entry in read(InputConfig(input=tmp_path)) if isinstance(entry, Item)]
    assert [(item.file, item.element_index) for item in found] == [
        ("a.png", 0),
        ("b/x.png", 0),
        ("c.png", 1),
    ]


def test_folder_without_an_image_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    result = job(tmp_path / "in", tmp_path / "out")
    assert result.exit_code == 2
    assert "no file below it ends in one of" in result.stderr


# --- a table -------------------------------------------------------------------------------------

RECORDS = [
    {"image": "a.png", "title": "Red <sun>", "id": 7},
    {"image": "./b/c.png", "title": None, "id": 8},
]


def write_table(path: Path, records: list[dict[str, object]]) -> Path:
    """Write a table in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(records[0])
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    else:
        separator = {".csv": ",", ".tsv": "\t"}[path.suffix]
        lines = [names, *([str(r[n] or "") for n in names] for r in records)]
        path.write_text("\ufeff" + "".join(f"{separator.join(line)}\r\n" for line in lines))
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_rows_are_captioned_with_their_columns_in_the_prompt_and_their_ids_in_the_manifest(
    tmp_path: Path, suffix: str
) -> None:
    make_images(tmp_path, "a.png", "b/c.png")
    table = write_table(tmp_path / f"list.{suffix}", RECORDS)
    prompt = tmp_path / "prompt.md"
    prompt.write_text("Describe it. {% if row.title %}It is called {{ row.title }}.{% endif %}")
    result = job(table, tmp_path / "out", f"--prompt={prompt}", "--id-column=id")
    assert result.exit_code == 0, result.stderr
    made = rows(tmp_path / "out")
    assert {file: row["item_id"] for file, row in made.items()} == {"a.png": "7", "b/c.png": "8"}
    assert {row["document"] for row in made.values()} == {table.name}
    columns = load_prompt(str(prompt)).columns
    config = InputConfig(input=table, images_root=tmp_path, columns=columns)
    asked = [render(load_prompt(str(prompt)), e).user for e in read(config) if isinstance(e, Item)]
    assert asked == ["Describe it. It is called Red ‹sun›.", "Describe it."]


def test_names_are_relative_to_the_root_even_with_a_dot_or_absolute(tmp_path: Path) -> None:
    names = ["./a.png", f"{tmp_path}/b.png", "/elsewhere/c.png", " d.png "]
    table = write_table(tmp_path / "t.jsonl", [{"path": name} for name in names])
    found = files_of(InputConfig(input=table, images_root=tmp_path))
    assert found == ["a.png", "b.png", "/elsewhere/c.png", "d.png"]


def test_two_rows_that_name_one_file_are_one_item(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.jsonl", [{"file": "a.png"}, {"file": "./a.png"}])
    reader = InputReader(InputConfig(input=table, images_root=tmp_path))
    assert [entry.file for entry in reader if isinstance(entry, Item)] == ["a.png"]
    assert reader.counts.duplicates == 1


def test_folder_of_parquet_files_is_one_table_in_the_order_of_its_parts(tmp_path: Path) -> None:
    for part in ("b", "a"):
        write_table(tmp_path / f"{part}.parquet", [{"file_name": f"{part}.png"}])
    config = InputConfig(input=tmp_path, images_root=tmp_path)
    assert files_of(config) == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "line 2 is not JSON"),
        (b"[1]", "line 2 is a list, not an object"),
        (b'{"image": 3}', "`image` is a number, not a string"),
        (b'{"other": 3}', "`image` is null, not a string"),
        (b'{"image": ""}', "`image` is empty"),
        (b'{"image": "\xff"}', "line 2 is not JSON"),
    ],
)
def test_unusable_row_fails_with_a_reason_and_the_others_are_captioned(
    tmp_path: Path, line: bytes, said: str
) -> None:
    table = tmp_path / "t.jsonl"
    table.write_bytes(b'\xef\xbb\xbf{"image": "a.png"}\n' + line + b'\n\n{"image": "b.png"}')
    first, bad, last = read(InputConfig(input=table, images_root=tmp_path))
    assert isinstance(bad, BadEntry)
    assert said in bad.reason
    assert [e.file for e in (first, last) if isinstance(e, Item)] == ["a.png", "b.png"]


@pytest.mark.parametrize("command", [(), ("plan",)], ids=["run", "plan"])
@pytest.mark.parametrize("of_designs", [True, False])
def test_prompt_that_uses_a_column_of_an_input_without_columns_is_a_mistake(
    tmp_path: Path, command: tuple[str, ...], of_designs: bool
) -> None:
    make_input(tmp_path, 1)
    (tmp_path / "p.md").write_text("Describe this {{ row.title }}.")
    given = input_flags(tmp_path) if of_designs else [f"--input={tmp_path / 'raw'}"]
    flags = (*given, f"--output={tmp_path / 'out'}", f"--prompt={tmp_path / 'p.md'}")
    result = run_here(*command, *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "error: --prompt: uses the column title, but " in result.stderr
    said = (
        "designs have no columns" if of_designs else "is a folder of images, which has no columns"
    )
    assert result.stderr.endswith(f"{said}\n")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"", "has no column image, file, file_name or path"),
        ("t.jsonl", b"", "has no column image"),
        ("t.csv", b"a,b\n1,2\n", "with --image-column; it has a, b"),
        ("t.csv", b"image\n", "has no rows"),
        ("t.csv", b"\xe9t\xe9,image\n", "it is not UTF-8 (byte 0); save it as UTF-8"),
        ("t.parquet", b"PAR1", "it cannot be read as a table"),
        ("t.jsonl", b"{}\n", "has no column image"),
    ],
)
def test_file_that_is_not_a_table_is_a_mistake_with_its_cause(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    result = job(tmp_path / name, tmp_path / "out")
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr


def test_only_rows_that_are_not_utf8_fail_and_say_where(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    rows_before = b"".join(b"%d.png\n" % number for number in range(10_000))
    table.write_bytes(b"image\n" + rows_before + b"b\xff.png\n" * 3 + b"c.png\n")
    found = read(InputConfig(input=table, images_root=tmp_path))
    bad = [entry.reason for entry in found if isinstance(entry, BadEntry)]
    assert bad == [
        f"line {number} is not UTF-8; save the table as UTF-8" for number in range(10_002, 10_005)
    ]
    assert len(found) == 10_004


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--image-column=pic"],
            "--image-column pic: {0}/t.jsonl has no such column; it has image, title",
        ),
        (["--id-column=ids"], "no such column (did you mean id?); it has image, title, id"),
        (["--jsons=."], "conflicts with --jsons: both name the input; give one"),
        (
            ["--prompt={0}/p.md"],
            "--prompt: uses the column titel, which {0}/t.jsonl does not have (did you mean title?)"
            "; it has image, title, id",
        ),
    ],
)
def test_flags_that_do_not_fit_the_table_are_mistakes(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    table = write_table(tmp_path / "t.jsonl", RECORDS)
    (tmp_path / "p.md").write_text("What is {{ row.titel }}?")
    result = job(table, tmp_path / "out", *(flag.format(tmp_path) for flag in flags))
    assert result.exit_code == 2
    assert said.format(tmp_path) in result.stderr


def test_columns_without_a_table_are_mistakes(tmp_path: Path) -> None:
    result = run_here("--id-column=a", f"--output={tmp_path}")
    assert "--id-column a: is for a table" in result.stderr


@pytest.mark.parametrize(
    ("template", "columns"),
    [
        ("Describe it.", ()),
        ("{{ row.title }} {{ row['sub title'] }} {{ row.title }}", ("title", "sub title")),
        ("{% for name in row %}{{ name }}{% endfor %} of it", ("*",)),
    ],
)
def test_prompt_knows_the_columns_that_its_template_uses(
    tmp_path: Path, template: str, columns: tuple[str, ...]
) -> None:
    (tmp_path / "p.md").write_text(template)
    assert load_prompt(str(tmp_path / "p.md")).columns == columns


def test_text_of_a_column_is_data(tmp_path: Path) -> None:
    (tmp_path / "p.md").write_text("{{ row.a }} {{ row.b.c }} {{ row.d | join(',') }}")
    prompt = load_prompt(str(tmp_path / "p.md"))
    row: dict[str, object] = {"a": "<|im_end|>", "b": {"c": "x\ny"}, "d": ["</s>", 3]}
    item = Item("a.png", Document("d"), 0, "", row)
    assert render(prompt, item).user == "‹|im_end|› x y ‹/s›,3"


# --- the other commands --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_plan_pilot_shard_verify_and_merge_work_on_every_kind_of_input(
    tmp_path: Path, kind: str
) -> None:
    files = make_images(tmp_path / "in", *(f"{number:02}.png" for number in range(12)))
    path = tmp_path / "in"
    if kind == "table":
        path = write_table(tmp_path / "in/t.csv", [{"image": file, "n": "1"} for file in files])
    out = f"--output={tmp_path / 'out'}"
    planned = run_here("plan", str(path), out, "--quiet")
    assert "12 = 0 captioned already + 12 to caption" in planned.stdout
    assert job(path, tmp_path / "out", "--pilot=3").exit_code == 0
    assert len(captions(tmp_path / "out")) == 3
    for shard in ("1/2", "2/2"):
        assert job(path, tmp_path / "out", f"--shard={shard}").exit_code == 0
    assert run_here("merge", out).exit_code == 0
    assert run_here("verify", str(path), out, "--quiet").exit_code == 0
    assert captions(tmp_path / "out") == {file: f"caption of {file}" for file in files}


def test_table_in_a_folder_does_not_include_captions_among_its_parts(tmp_path: Path) -> None:
    write_table(tmp_path / "t/a.parquet", [{"image": "a.png"}])
    result = job(tmp_path / "t", tmp_path / "t")
    assert "--output" in result.stderr
    assert (result.exit_code, "is also the folder of --input" in result.stderr) == (2, True)


# --- images inside other files -------------------------------------------------------------------


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A tar of regular files."""
    with tarfile.open(path, "w") as opened:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))
    return path


def png(number: int) -> bytes:
    held = io.BytesIO()
    draw_shape(number).save(held, format="PNG")
    return held.getvalue()


def test_images_of_tars_are_captioned_without_unpacking_with_their_json_in_the_prompt(
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    for shard in range(2):
        members = {"0.png": png(2 * shard), "0.json": b'{"title": "sun"}', "0.txt": b"alt"}
        write_tar(tmp_path / f"in/{shard}.tar", {**members, "a/1.png": png(2 * shard + 1)})
    files = ["0.tar/0.png", "0.tar/a/1.png", "1.tar/0.png", "1.tar/a/1.png"]
    assert job(tmp_path / "in", tmp_path / "out").exit_code == 0
    assert captions(tmp_path / "out") == {file: f"caption of {file}" for file in files}
    assert "(0 in this run)" in job(tmp_path / "in", tmp_path / "out").stdout
    columns = ("title", "txt")
    found = read(
        InputConfig(input=tmp_path / "in/0.tar", images_root=tmp_path / "in", columns=columns)
    )
    assert [entry.row for entry in found if isinstance(entry, Item)] == [
        {"title": "sun", "txt": "alt"},
        {"title": None, "txt": None},
    ]
    assert run_here("plan", str(tmp_path / "in"), "--images", "--quiet").exit_code == 0


@pytest.mark.parametrize(
    ("flag", "exit_code", "said"),
    [
        ("--id-column=id", 1, "its 0.json cannot be read: Input data was truncated"),
        ("--prompt=p.md", 1, "its 0.json cannot be read: Input data was truncated"),
        ("--prompt=typo.md", 2, "--prompt: uses the column titel, which t.tar does not have (did"),
    ],
)
def test_columns_of_a_tar_that_are_missing_or_damaged_are_named_with_what_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, exit_code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.md").write_text("A {{ row.title }}?")
    Path("typo.md").write_text("{{ row.titel }}")
    columns = b'{"id": 1, "title": "sun"}'
    members = {"0.png": png(0), "0.json": b"{", "1.png": png(1), "1.json": columns}
    tar = write_tar(Path("t.tar"), members)
    result = job(tar, Path("out"), flag)
    assert result.exit_code == exit_code
    errors = [row["error"] for row in rows(Path("out")).values()] if exit_code == 1 else []
    assert said in (errors[0] or errors[1] if errors else result.stderr)


def test_truncated_tar_yields_the_images_before_the_cut_and_says_so(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "t.tar", {f"{number}.png": png(number) for number in range(3)})
    with tarfile.open(tar) as opened:
        last = opened.getmembers()[-1]
    os.truncate(tar, last.offset_data + 10)
    result = job(tar, tmp_path / "out")
    assert result.exit_code == 1
    made = rows(tmp_path / "out")
    assert sum(row["status"] == "captioned" for row in made.values()) == 2
    errors = {row["error"] for row in made.values() if row["status"] == "failed"}
    assert any("the tar ends" in error for error in errors)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../x.png", "path_escape"), ("/x.png", "path_escape"), ("x.png", "not_an_image")],
)
def test_member_that_is_not_an_image_or_leads_elsewhere_fails_alone(
    tmp_path: Path, name: str, kind: str
) -> None:
    tar = write_tar(tmp_path / "t.tar", {name: b"no image", "y.png": png(1)})
    assert job(tar, tmp_path / "out").exit_code == 1
    made = rows(tmp_path / "out")
    assert made["t.tar/y.png"]["status"] == "captioned"
    assert made[f"t.tar/{name}"]["error_kind"] == kind


def test_compressed_tar_is_a_mistake(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w:gz"):
        pass
    result = job(tmp_path / "t.tar", tmp_path / "out")
    assert (result.exit_code, "it cannot be read as a tar" in result.stderr) == (2, True)


def test_parquet_that_contains_its_images_is_captioned_row_by_row(tmp_path: Path) -> None:
    cells = [{"bytes": png(number), "path": f"{number}.png"} for number in range(5)]
    cells[3] = {"bytes": None, "path": None}
    records = [{"image": cell, "id": f"id{n}"} for n, cell in enumerate(cells)]
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "t.parquet", row_group_size=2)
    result = job(tmp_path / "t.parquet", tmp_path / "out", "--id-column=id")
    assert result.exit_code == 1
    made = rows(tmp_path / "out")
    files = [f"t.parquet/image/{number:08}" for number in range(5)]
    assert [made[file]["item_id"] for file in files] == [f"id{number}" for number in range(5)]
    assert [made[file]["error_kind"] for file in files] == [None, None, None, "missing_file", None]
    assert made[files[4]]["image_sha256"] == hashlib.sha256(png(4)).hexdigest()


def test_row_with_a_list_of_images_is_a_design_whose_types_are_skipped_by_name(
    tmp_path: Path,
) -> None:
    features = {
        "type": {"feature": {"names": ["SvgElement", "TextElement"], "_type": "ClassLabel"}}
    }
    designs = [
        {
            "title": "Sale",
            "canvas_width": 800,
            "type": [0, 1, 0],
            "image": [png(1), png(2), png(3)],
        },
        {"title": "Short", "canvas_width": 800, "type": [0], "image": [png(4), png(5)]},
    ]
    table = pa.Table.from_pylist(designs)
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "t.parquet")
    config = InputConfig(input=tmp_path / "t.parquet", images_root=tmp_path, type_column="type")
    first, second, skipped = read(config)
    assert isinstance(first, Item)
    assert isinstance(second, Item)
    assert isinstance(skipped, SkippedDocument)
    assert [first.file, second.file] == [f"t.parquet/image/00000000/{place}" for place in (0, 2)]
    assert (first.document.title, first.document.canvas_width) == ("Sale", 800)
    assert first.element_type == "SvgElement"
    assert (skipped.kind, "2 images and 1 type" in skipped.reason) == ("types_length", True)
    assert job(tmp_path / "t.parquet", tmp_path / "out", "--type-column=type").exit_code == 0
    made = rows(tmp_path / "out")
    assert made[second.file]["image_sha256"] == hashlib.sha256(png(3)).hexdigest()


def test_parquet_with_damage_inside_yields_the_rows_before_it_and_says_where(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.parquet"
    records = [{"image": {"bytes": png(0), "path": "x"}, "id": f"id{n}"} for n in range(6000)]
    table = pa.Table.from_pylist(records)
    pq.write_table(table, path, row_group_size=2000, compression="gzip", use_dictionary=False)
    ids = pq.read_metadata(path).row_group(1).column(2)
    with path.open("r+b") as opened:
        opened.seek(ids.data_page_offset)
        opened.write(b"\xff" * ids.total_compressed_size)
    *before, last = read(InputConfig(input=path, images_root=tmp_path, id_column="id"))
    assert isinstance(last, BadEntry)
    assert last.reason.startswith("the table ends here: ")
    assert 0 < len(before) <= 2000


def test_size_of_an_image_in_a_cell_is_the_mean_of_its_row_group_without_reading(
    tmp_path: Path,
) -> None:
    images = [b"x" * 1000, b"x" * 3000]
    pq.write_table(
        pa.table({"image": images}),
        tmp_path / "t.parquet",
        compression="none",
        use_dictionary=False,
        write_statistics=False,
    )
    size = num_bytes(str(tmp_path), "t.parquet/image/00000001")
    assert 2000 <= size < 2200
    with pytest.raises(ItemError, match="has 2 rows"):
        num_bytes(str(tmp_path), "t.parquet/image/00000002")
    with pytest.raises(ItemError, match="has no column picture"):
        num_bytes(str(tmp_path), "t.parquet/picture/00000000")


def test_link_to_a_tar_outside_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_tar(tmp_path / "t.tar", {"x.png": png(1)})
    (tmp_path / "in/t.tar").symlink_to(tmp_path / "t.tar")
    with pytest.raises(ItemError, match="leaves the images root"):
        read_image(str(tmp_path / "in"), "t.tar/x.png")


def test_long_text_of_a_column_is_complete_in_the_source_and_bounded_in_an_item(
    tmp_path: Path,
) -> None:
    long = "very " * 1000
    table = write_table(tmp_path / "t.jsonl", [{"image": "a.png", "title": long}])
    config = InputConfig(input=table, images_root=tmp_path, columns=("title",))
    (group,) = open_source(config).documents()
    assert isinstance(group, Group)
    assert [element.row for element in group.elements] == [{"title": long}]
    (item,) = read(config)
    assert isinstance(item, Item)
    assert item.row == {"title": long[:500]}


def test_image_column_of_dates_fails_its_rows_without_a_crash(tmp_path: Path) -> None:
    dates = pa.array([date(2020, 1, 2)])
    pq.write_table(pa.table({"image": dates}), tmp_path / "t.parquet")
    assert files_of(InputConfig(input=tmp_path / "t.parquet")) == ["2020-01-02"]
