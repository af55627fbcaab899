"""`report` from the outside: the numbers, text and pictures of the page, and its refusals."""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import structs
from PIL import Image
from support.job import FAKE, draw_shape, input_flags, make_input, rows, run, run_here
from support.report_folder import RECIPE, many_rows, row, write_folder, write_series

from vllm_caption.captions.rules import words
from vllm_caption.commands.report.charts import ticks
from vllm_caption.commands.report.command import make_report
from vllm_caption.commands.report.facts import num_words
from vllm_caption.commands.report.items import align
from vllm_caption.commands.report.meanings import DOCUMENT_MEANINGS, FLAG_MEANINGS, ITEM_MEANINGS
from vllm_caption.commands.report.records import read_all
from vllm_caption.commands.report.thumbnails import choose
from vllm_caption.errors import CAPTION_FLAGS, ITEM_KINDS, DocumentKind
from vllm_caption.items import SkippedDocument
from vllm_caption.monitoring.figures import EngineFigures
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.monitoring.status import RunState, encode_status, make_status
from vllm_caption.store.documents import write_documents
from vllm_caption.store.lock import OutputLock

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "a\u2028b\u2029c\u202ed",
    "{{ 7 * 7 }} ${alert(1)} `x`",
    "javascript:alert(1)",
)


def page_of(*roots: Path, **options: Any) -> str:
    target = roots[0] / "page.html"
    make_report(list(roots), target, **options)
    return target.read_text("utf-8")


def data_of(page: str) -> dict[str, Any]:
    block = re.search(r'id="data">([A-Za-z0-9+/=]*)</script>', page)
    assert block is not None
    return json.loads(gzip.decompress(base64.b64decode(block[1])))  # type: ignore[no-any-return]


def tiles(page: str) -> dict[str, str]:
    """Label of each big number → the number, of the first folder."""
    found = re.findall(r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>', page)
    return {label: value for value, label in reversed(found)}


def text_of(page: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", page))


class Elements(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_numbers_are_those_of_the_manifest_of_a_real_run(tmp_path: Path) -> None:
    files = make_input(tmp_path, 24)
    (tmp_path / "raw" / files[3]).write_bytes(b"no image at all")
    (tmp_path / "raw" / files[5]).unlink()
    output = tmp_path / "captions"
    flags = [*input_flags(tmp_path), f"--output={output}", "--data-parallel-size=2"]
    assert run(*flags, command=FAKE).exit_code == 1
    result = run_here("report", f"--output={output}")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"{output / 'report.html'}: 24 items, 22 pictures, ")
    page = (output / "report.html").read_text("utf-8")
    data, kept = data_of(page), rows(output)
    shown = tiles(page)
    assert (shown["items"], shown["captioned"], shown["failed"]) == ("24", "22", "2")
    tokens = sum(r["output_tokens"] or 0 for r in kept.values())
    assert shown["output tokens"] == f"{tokens:,}"
    (side,) = data["sides"]
    for place, file in enumerate(data["file"]):
        assert side["text"][place] == (kept[file]["caption"] or kept[file]["error"])
        assert data["statuses"][side["status"][place]] == kept[file]["status"]
        assert data["document"]["names"][data["document"]["of"][place]] == kept[file]["document"]
    assert "The last run finished (" in page
    assert "not_an_image" in page
    assert "missing_file" in page


def test_the_last_row_of_an_item_counts_even_if_only_the_journal_has_it(tmp_path: Path) -> None:
    root = write_folder(
        tmp_path / "o",
        [row("a.png", error_kind="engine_error", error="too slow"), row("b.png")],
        journal=[row("a.png", caption="A late circle.")],
    )
    with (root / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"file": "torn')
    page = page_of(root)
    assert tiles(page)["captioned"] == "2"
    assert data_of(page)["sides"][0]["text"] == ["A late circle.", "A shape of b.png."]


TRICKY = (
    "aZé9½Ⅷ_-–.,'*! \n\t\r\x0b\x1c\u00a0\u2009\u3000\u200b\u0301"
    "字〇々圆。，、「」ー・゠がゔ゙゛ｶＡ２！한글"
)
TEXTS = st.text(
    st.sampled_from(TRICKY)
    | st.characters(exclude_categories=["Cs", "Co", "Cn"], exclude_characters="\u0345")
)


@given(TEXTS)
@example("a well-known, 24.5 px wide star - round")
@example("  one\n two\tthree ")
@example("一个 logo，24 px \u3000蓝red\U00020000")
def test_words_are_counted_as_the_rules_count_them(text: str) -> None:
    assert num_words(pa.chunked_array([[text]])).tolist() == [len(words(text))]


def test_failures_and_flags_are_listed_with_examples_meaning_and_remedy(tmp_path: Path) -> None:
    failed = [row(f"{n}.png", error_kind="poison", error=f"killed {n}") for n in range(9)]
    flagged = [row("long.png", caption="Very wordy.", flags=("too_long", "cut_off"))]
    page = page_of(write_folder(tmp_path / "o", [*failed, *flagged]))
    text = text_of(page)
    assert [f"{n}.png killed {n}" in text for n in (0, 4, 8)] == [True] * 3
    assert "killed an engine twice" in text
    assert "--redo-kind poison" in text
    assert "long.png Very wordy." in text
    assert "max_words" in text
    assert tiles(page)["flagged"] == "1"
    bits = sum(1 << CAPTION_FLAGS.index(flag) for flag in ("too_long", "cut_off"))
    assert data_of(page)["sides"][0]["flags"].count(bits) == 1


@pytest.mark.parametrize(
    ("kind", "causes"),
    [
        ("engine_error", ["prompt could not be made", "engine refused"]),
        ("too_large", ["pixels than --max-image-pixels", "file is larger than 512 MiB"]),
        ("output_conflict", ["at the caption's path", "cannot be read", "or written"]),
        ("caption_rejected", ["empty", "only reasoning", "repeated itself", "broke the prompt's"]),
    ],
)
def test_meaning_of_a_kind_covers_each_of_its_causes(kind: str, causes: list[str]) -> None:
    assert [cause for cause in causes if cause not in ITEM_MEANINGS[kind].what] == []


def test_every_kind_and_every_flag_is_explained() -> None:
    assert set(ITEM_MEANINGS) == set(ITEM_KINDS)
    assert set(DOCUMENT_MEANINGS) == set(get_args(DocumentKind))
    assert set(FLAG_MEANINGS) == set(CAPTION_FLAGS)


def test_documents_that_were_left_out_are_listed_by_kind(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "o", [row()])
    reason = "there is no detail of this name"
    write_documents(root, [SkippedDocument("design_9", "missing_detail", reason)])
    assert "design_9 there is no detail of this name" in text_of(page_of(root))


def test_no_content_of_rows_becomes_markup_or_script(tmp_path: Path) -> None:
    wild = [
        row(
            f"{n}{bad}.png",
            caption=bad,
            flags=("loop",),
            document=bad,
            element_type=bad,
            backdrop=bad,
            prompt_name=bad,
        )
        for n, bad in enumerate(HOSTILE)
    ]
    wild += [row(f"f{n}{bad}", error_kind=bad, error=bad) for n, bad in enumerate(HOSTILE)]
    root = write_folder(tmp_path / "<b>&amp;", wild)
    write_documents(root, [SkippedDocument(bad, bad, bad) for bad in HOSTILE])  # type: ignore[arg-type]
    plain = Elements(page_of(write_folder(tmp_path / "plain", [row(flags=("loop",))])))
    page = page_of(root)
    tags = Elements(page).found
    assert {tag for tag, _ in tags} <= {tag for tag, _ in plain.found} | {"h4", "div", "rect"}
    assert sum(tag == "script" for tag, _ in tags) == 2
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    assert data_of(page)["sides"][0]["text"].count(HOSTILE[0]) == 2


def test_page_requests_nothing_and_its_policy_allows_only_its_own_script(tmp_path: Path) -> None:
    page = page_of(write_folder(tmp_path / "o", many_rows(50)))
    tags = Elements(page).found
    asked = [v for _, attrs in tags for k, v in attrs.items() if k in ("src", "href", "srcset")]
    assert all(v and v.startswith(("#", "data:")) for v in asked)
    (policy,) = [a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; ")
    assert re.search(r"script-src 'sha256-[\w+/]{43}='", policy)


def pictured_folder(tmp_path: Path) -> Path:
    """Eight drawn images, one white on transparent; one item failed, one is flagged."""
    raw = tmp_path / "raw"
    raw.mkdir()
    made = []
    for number in range(8):
        image = draw_shape(number)
        if number == 2:
            image = Image.new("RGBA", (90, 90), (255, 255, 255, 0))
            image.paste((255, 255, 255, 255), (30, 30, 60, 60))
        file = f"{number}.png"
        image.save(raw / file)
        extra: dict[str, Any] = {"image_path": f"{raw}/{file}"}
        if number == 6:
            extra |= {"error_kind": "poison", "error": "it killed two engines"}
        if number == 7:
            extra |= {"flags": ("loop",)}
        made.append(row(file, **extra))
    return write_folder(tmp_path / "o", made)


def test_pictures_show_the_backdrop_that_the_model_saw(tmp_path: Path) -> None:
    data = data_of(page_of(pictured_folder(tmp_path)))
    assert len(data["pictures"]) == 8
    uri = data["pictures"][str(data["file"].index("2.png"))]
    assert uri.startswith("data:image/webp;base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L")
    assert picture.getpixel((1, 1)) < 10
    assert picture.getpixel((45, 45)) > 245


def test_failed_and_flagged_items_get_their_picture_first(tmp_path: Path) -> None:
    data = data_of(page_of(pictured_folder(tmp_path), num_pictures=4))
    pictured = {data["file"][int(place)] for place in data["pictures"]}
    assert len(pictured) == 4
    assert {"6.png", "7.png"} <= pictured


def test_page_offers_more_pictures_only_if_more_can_be_made(tmp_path: Path) -> None:
    root = pictured_folder(tmp_path)
    (tmp_path / "raw" / "0.png").unlink()
    few, all_ = text_of(page_of(root, num_pictures=4)), text_of(page_of(root))
    assert "items have one, those that failed or are flagged first; report --gallery N" in few
    assert "7 of 8 items have one; the other images cannot be shown." in all_
    assert "--gallery N" not in all_


def test_each_kind_flag_and_type_has_its_turn_in_the_sample(tmp_path: Path) -> None:
    records = read_all([write_folder(tmp_path / "o", many_rows(20_000))])
    items = align(records)
    chosen = choose(items, 300)
    assert len(chosen) == 300
    sample = items.sides[0].take(chosen)
    kinds = set(sample["error_kind"].to_pylist())
    assert "engine_error" in kinds
    assert "missing_file" not in kinds  # without a picture
    assert {tuple(f) for f in sample["flags"].to_pylist()} == {(), ("too_long",), ("cut_off",)}
    assert len(set(sample["element_type"].to_pylist())) == 3
    assert sample["flags"].to_pylist().count([]) >= 150  # half is left to ordinary ones
    assert choose(items, 300) == chosen


def test_missing_and_changed_images_are_marked(tmp_path: Path) -> None:
    root = pictured_folder(tmp_path)
    (tmp_path / "raw" / "0.png").unlink()
    changed = row("1.png", image_path=f"{tmp_path / 'raw'}/1.png", image_sha256="0" * 64)
    (root / "journal.jsonl").write_bytes(json.dumps(as_journal(changed)).encode() + b"\n")
    data = data_of(page_of(root))
    notes = {data["file"][int(place)]: note for place, note in data["notes"].items()}
    assert notes["0.png"].startswith("cannot be shown now: missing_file: ")
    assert notes["1.png"] == "the file has changed since"
    assert "0" not in data["pictures"]


def as_journal(made: Any) -> dict[str, Any]:
    import msgspec

    return msgspec.to_builtins(made)  # type: ignore[no-any-return]


def test_images_that_were_moved_are_found_under_images_root(tmp_path: Path) -> None:
    root = pictured_folder(tmp_path)
    (tmp_path / "raw").rename(tmp_path / "elsewhere")
    assert "No picture could be made" in page_of(root)
    page = page_of(root, images_root=tmp_path / "elsewhere")
    assert len(data_of(page)["pictures"]) == 8
    assert "No picture could be made" not in page


def test_page_without_pictures_says_whether_any_were_requested(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "o", [row()])
    assert "No picture could be made: say where the images are" in text_of(page_of(root))
    text = text_of(page_of(root, num_pictures=0))
    assert "No pictures were requested (--gallery 0)." in text
    assert "No picture could be made" not in text


def test_two_folders_are_compared_image_by_image(tmp_path: Path) -> None:
    words = ["A red dot.", "A blue dot.", "A green dot.", "A dot."]
    a = [row(f"{n}.png", caption=text) for n, text in enumerate(words)]
    b = [
        row("0.png", caption="A red dot."),
        row("1.png", caption="A blue dot that is very large.", flags=("too_long",)),
        row("2.png", error_kind="engine_error", error="too slow"),
        row("9.png", caption="Only here."),
    ]
    roots = [write_folder(tmp_path / "brief", a), write_folder(tmp_path / "wordy", b)]
    page = page_of(*roots)
    cells = re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", page[page.index('id="compare"') :])[:20]
    assert [re.sub("<.*?>", " ", c) for c in cells[:10]] == [
        *("against A", "both", "identical", "different", "longer", "shorter"),
        *("mean difference in words", "flags", "only A", "only this"),
    ]
    assert [re.sub("<.*?>", "", c) for c in cells[10:]] == [
        *("B wordy shape-brief", "2", "1", "1", "1", "0", "+2.0"),
        *("too_long lost 0, new 1", "2", "1"),
    ]
    data = data_of(page)
    assert data["labels"] == ["brief", "wordy"]
    assert data["file"] == ["0.png", "1.png", "2.png", "3.png", "9.png"]
    assert data["sides"][0]["status"] == [0, 0, 0, 0, -1]
    assert data["sides"][1]["status"] == [0, 0, 1, -1, 0]


def test_items_that_only_one_of_two_folders_has_are_counted_on_the_page_and_in_the_terminal(
    tmp_path: Path,
) -> None:
    a = write_folder(tmp_path / "a", [row(f"{n}.png") for n in range(5)])
    b = write_folder(tmp_path / "b", [row("0.png"), row("9.png", error_kind="poison", error="x")])
    same = write_folder(tmp_path / "same", [row(f"{n}.png") for n in range(5)])
    told = run_here("report", str(a), str(b), str(same), "--items=3").stdout.splitlines()
    assert told[1:] == ["1 item is in both a and b; 4 only in a, 1 only in b"]
    page = (a / "compare.html").read_text()
    assert "1 item is in both A and B; 4 only in A, 1 only in B." in page
    assert "in both A and C" not in page
    assert "not in every folder" in page
    (line,) = run_here("report", str(a), str(same)).stdout.splitlines()
    assert "5 items" in line
    assert "not in every folder" not in (a / "compare.html").read_text()


def test_folders_without_a_common_item_have_no_difference(tmp_path: Path) -> None:
    page = page_of(*(write_folder(tmp_path / name, [row(f"{name}.png")]) for name in "ab"))
    assert "0 items are in both A and B" in page
    assert re.findall('"words on average">(.*?)</td><td>(.*?)</td>', page) == [("–", "–")]


def test_comparison_counts_all_items_where_the_gallery_holds_a_sample(tmp_path: Path) -> None:
    roots = [write_folder(tmp_path / name, many_rows(500)) for name in "ab"]
    run_here("report", *map(str, roots), "--items=100", "--gallery=0")
    page = (roots[0] / "compare.html").read_text()
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", page[page.index('id="compare"') :])
    done = sum(made.status == "captioned" for made in many_rows(500))
    assert cells[11] == f"{done}"


def test_folders_of_the_same_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    roots = [write_folder(tmp_path / side / "out", [row()]) for side in ("x", "y")]
    result = run_here("report", *map(str, roots))
    assert result.exit_code == 0
    assert result.stdout.startswith(str(roots[0] / "compare.html"))
    assert data_of((roots[0] / "compare.html").read_text())["labels"] == list(map(str, roots))


def test_if_not_all_items_fit_all_failed_and_flagged_ones_stay(tmp_path: Path) -> None:
    page = page_of(write_folder(tmp_path / "o", many_rows(5_000)), num_items=500, num_pictures=0)
    side = data_of(page)["sides"][0]
    assert len(side["status"]) == 500
    assert sum(side["status"]) == 50
    assert sum(flags > 0 for flags in side["flags"]) == 100
    assert "Of 5,000 items, the page lists those that failed or are flagged" in page
    assert tiles(page)["items"] == "5,000"


def test_charts_over_time_come_from_the_monitor_if_there_is_one(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "o", many_rows(200))
    page = page_of(root)
    assert "monitor.parquet is missing or unreadable" in page
    assert "Speed <span" in page
    assert "GPU use <span" not in page
    write_series(root, 900)
    page = page_of(root)
    for title in ("Speed", "Engine memory", "GPU use", "GPU memory", "Machine"):
        assert f"<figcaption>{title} <span" in page
    assert "monitor.parquet is missing" not in page
    assert page.count('class="border"') == page.count("running time (h)")


def test_runs_of_one_sample_have_no_charts_over_time_but_that_of_the_speed(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "o", many_rows(200))
    write_series(root, 2)
    page = page_of(root)
    assert "The runs were too short for charts of memory and GPU use over time." in page
    assert re.findall(r"<figcaption>(Speed|GPU use|Machine) <", page) == ["Speed"]


def test_quantiles_are_values_that_so_many_items_do_not_exceed(tmp_path: Path) -> None:
    made = [row(f"{n}.png", caption="One two." + " word" * n, generate_s=n + 1) for n in range(10)]
    page = page_of(write_folder(tmp_path / "o", made))
    assert "half are at or below 6, 99% at or below 11, the maximum is 11 words" in page
    assert "99% within 10 s" in page


@pytest.mark.parametrize("fault", ["columns", "bytes", "nothing measured"])
def test_monitor_without_some_figures_costs_only_their_charts(tmp_path: Path, fault: str) -> None:
    root = write_folder(tmp_path / "o", many_rows(200))
    write_series(root, 50)
    path = root / "monitor.parquet"
    table = pq.read_table(path)
    if fault == "columns":
        pq.write_table(table.select(["at", "run_id", "images_per_s"]), path)
    elif fault == "bytes":
        path.write_bytes(path.read_bytes()[:300])
    else:
        nothing = pa.array([[]] * 50, table.schema.field("engines").type)
        pq.write_table(table.set_column(11, table.schema.field("engines"), nothing), path)
    page = page_of(root)
    assert "<figcaption>Speed <span" in page
    assert "<figcaption>GPU use <span" not in page
    assert ("monitor.parquet is missing or unreadable" in page) == (fault == "bytes")


def test_recipe_is_shown_with_its_prompt_and_settings(tmp_path: Path) -> None:
    unknown = row("b.png", recipe_id="f" * 12)
    text = text_of(page_of(write_folder(tmp_path / "o", [row(), row("c.png"), unknown])))
    assert RECIPE.prompt in text
    assert "max_tokens100" in text
    assert "recipes.json does not say what this recipe is" in text


def test_sections_without_content_are_not_on_the_page(tmp_path: Path) -> None:
    plain = {"element_type": "", "engine": None, "generate_s": None, "output_tokens": None}
    plain |= dict.fromkeys(("prepare_s", "render_s", "render_queue_s", "queue_s"), None)
    failed = row("a.png", error_kind="poison", error="it", **plain)
    assert headings(page_of(write_folder(tmp_path / "failed", [failed]))) == [
        *("failed", "What needs attention", "Failed items, by kind", "Gallery"),
        *("Coverage", "Recipes"),
    ]
    fine = page_of(write_folder(tmp_path / "fine", [row()]))
    assert headings(fine) == [
        *("fine", "Gallery", "Charts", "Coverage", "By element type", "By engine", "Recipes"),
    ]
    assert "Every item in the manifest has a caption, and no caption is flagged." in fine
    assert 'href="#attention"' not in fine


def test_headings_of_folders_side_by_side_name_their_prompts(tmp_path: Path) -> None:
    other = structs.replace(RECIPE, prompt_name="shape-zh", prompt="用中文")
    brief = write_folder(tmp_path / "brief", [row()])
    mixed = write_folder(tmp_path / "zh", [row(recipe_id=other.id)], recipe=other)
    page = page_of(brief, mixed)
    assert headings(page)[:2] == ["A brief shape-brief", "B zh shape-zh"]
    assert headings(page).count("B zh shape-zh") == 4, "summary, charts, coverage, recipes"
    assert data_of(page)["prompts"] == {RECIPE.id: "shape-brief", other.id: "shape-zh"}


def test_sentences_of_the_page_are_separated(tmp_path: Path) -> None:
    sampled = sentences(page_of(write_folder(tmp_path / "o", many_rows(300)), num_items=100))
    assert re.findall(r"\w*\.[A-Z]\w*", sampled) == []
    assert "is not known. Every item" in sentences(page_of(write_folder(tmp_path / "1", [row()])))


def sentences(page: str) -> str:
    """The visible text, each tag as a space; without styles, scripts and the gallery's data."""
    shown = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.S)
    return html.unescape(re.sub(r"<[^>]*>", " ", shown))


def headings(page: str) -> list[str]:
    return [text_of(found) for found in re.findall(r"<h[234]>(.*?)</h[234]>", page)]


def test_page_can_be_made_during_a_run_and_writes_only_itself(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "o", [row()])
    lock = OutputLock(root)
    before = sorted(root.rglob("*"))
    assert run_here("report", f"--output={root}").exit_code == 0
    assert sorted(root.rglob("*")) == sorted([*before, root / "report.html"])
    lock.release()


def fresh(tmp_path: Path, what: str) -> list[str]:
    """The arguments of an impossible report."""
    good = write_folder(tmp_path / "good", [row()])
    if what == "no rows":
        write_folder(tmp_path / "none", [])
        return [f"--output={tmp_path / 'none'}"]
    return {
        "no folder": [f"--output={tmp_path / 'nowhere'}"],
        "a file": [f"--output={good / 'recipes.json'}"],
        "no place": [f"--output={good}", f"--html={tmp_path / 'no' / 'page.html'}"],
        "a folder as page": [f"--output={good}", f"--html={good}"],
        "twice": [str(good), str(good)],
        "both ways": [str(good), f"--output={tmp_path / 'other'}"],
        "no images": [f"--output={good}", f"--images-root={tmp_path / 'no'}"],
        "a word": [f"--output={good}", "--gallery=many"],
    }[what]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no rows", "holds no rows yet"),
        ("no folder", "does not exist; name the folder that a run wrote"),
        ("a file", "is not a folder"),
        ("no place", "--html"),
        ("a folder as page", "--html"),
        ("twice", "is named twice"),
        ("both ways", "name the folders once"),
        ("no images", "--images-root"),
        ("a word", "--gallery"),
    ],
)
def test_mistake_is_one_sentence_and_exit_2(tmp_path: Path, what: str, message: str) -> None:
    result = run_here("report", *fresh(tmp_path, what))
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize("name", ["manifest.parquet/part-00000001.parquet", "documents.parquet"])
def test_damaged_part_is_one_sentence_and_exit_3(tmp_path: Path, name: str) -> None:
    root = write_folder(tmp_path / "o", [row()])
    write_documents(root, [])
    (root / name).write_bytes(b"PAR1 and then nothing that makes sense PAR1")
    result = run_here("report", f"--output={root}")
    assert result.exit_code == 3
    (line,) = result.stderr.splitlines()
    assert f"{root / name} is damaged" in line
    assert not (root / "report.html").exists()


def test_report_imports_no_engine(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "o", [row()])
    code = (
        "import sys; from vllm_caption.cli import main;"
        f"main(['report', '--output={root}']);"
        "print(sorted({'vllm', 'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("most", "expected"), [(0.0, [0, 1]), (0.7, [0, 0.2, 0.4, 0.6, 0.8]), (1000, [0, 500, 1000])]
)
def test_axes_have_round_numbers(most: float, expected: list[float]) -> None:
    assert ticks(most, 3 if most == 1000 else 4) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("held", "expected"), [(True, "A run is in progress"), (False, "The last run died")]
)
def test_page_shows_whether_a_run_is_alive_or_died_and_what_is_left(
    tmp_path: Path, held: bool, expected: str
) -> None:
    root = write_folder(tmp_path / "o", [row()])
    write_status(root, "running", total=1_001)
    lock = OutputLock(root)
    if not held:
        lock.release()
    text = text_of(page_of(root))
    assert expected in text
    assert "1,000 items of the input have no row yet" in text
    lock.release()


@pytest.mark.parametrize(
    ("is_part", "expected"),
    [
        (False, "Every item has a caption, no caption is flagged, and nothing was left out."),
        (
            True,
            "It was a pilot or had a --limit, so the input may have more items. Every item in the"
            " manifest has a caption, and no caption is flagged.",
        ),
    ],
)
def test_page_about_a_part_of_the_input_claims_nothing_about_the_rest(
    tmp_path: Path, is_part: bool, expected: str
) -> None:
    root = write_folder(tmp_path / "o", [row()])
    write_status(root, "finished", total=1, is_part=is_part)
    text = " ".join(text_of(page_of(root)).split())
    assert f"The last run finished (24 Nov 2026, 05:00 UTC). {expected}" in text
    assert ("nothing was left out" in text) != is_part


def write_status(root: Path, state: RunState, *, total: int, is_part: bool = False) -> None:
    stats = RunStats([EngineFigures(0)], total=total, scanning=False, is_part=is_part)
    status = make_status("run-1", state, stats, 0.0, "2026-11-24T05:00:00+00:00")
    (root / "status.json").write_bytes(encode_status(status))


def test_what_there_is_one_of_is_named_in_the_singular(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    draw_shape(1).save(raw / "a.png")
    one = {"caption": "Circle.", "image_path": f"{raw}/a.png", "output_tokens": 1}
    root = write_folder(tmp_path / "o", [row(**one, prompt_tokens=1, backdrop="white")])
    line = run_here("report", str(root)).stdout
    assert line.startswith(f"{root / 'report.html'}: 1 item, 1 picture, ")
    page = (root / "report.html").read_text("utf-8")
    twice = write_folder(tmp_path / "twice", [row(f"{n}.png", **one) for n in range(2)])
    page += page_of(twice, num_pictures=1)
    page = re.sub(r"<text .*?</text>", "", page)  # the numbers and names of axes
    shown = sentences(re.sub(r'data-unit="(.*?)">(.*?)<', r">\2 \1<", page))
    plural = r"(?<!to )\b1\s+(?:\w+\s+)?(?:items|captions|pictures|words|tokens|parts)\b"
    assert re.findall(plural, shown) == []
    for expected in ("1 item; half are", ": 1 caption", "1 caption repeats another", "1 item,"):
        assert expected in page, expected
    assert {"item", "distinct caption", "output token"} <= tiles(page).keys()
