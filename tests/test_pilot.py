"""`--pilot N`: a small representative share of the input first, the rest later."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.job import FAKE, Result, captions, input_flags, make_input, run, write_document

from vllm_caption.config import InputConfig
from vllm_caption.driver.pilot import (
    MAX_TYPES,
    Pilot,
    choose_pilot,
    share_out,
    spread,
)
from vllm_caption.flags import without_flags
from vllm_caption.inputs.reader import InputReader
from vllm_caption.inputs.source import Nouns
from vllm_caption.items import Item
from vllm_caption.monitoring.figures import EngineFigures
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.monitoring.summary import describe_pilot


def config(folder: Path, **options: object) -> InputConfig:
    return InputConfig(
        folder / "jsons",
        folder / "json_detail",
        folder / "raw",
        **options,  # type: ignore[arg-type]
    )


def make_sized(folder: Path, sizes: dict[str, list[int]]) -> None:
    """For each element type, files of these sizes in bytes; they need not be images here."""
    (folder / "raw").mkdir()
    for kind, numbers in sizes.items():
        files = [f"{kind}_{size}_{index}.png" for index, size in enumerate(numbers)]
        for file, size in zip(files, numbers, strict=True):
            (folder / "raw" / file).write_bytes(b"x" * size)
        write_document(folder, f"design_{kind}", files, [kind] * len(files))


def chosen(pilot: Pilot) -> list[str]:
    assert pilot.input.only is not None
    return sorted(pilot.input.only)


def sizes_of(pilot: Pilot, kind: str) -> list[int]:
    return sorted(int(f.split("_")[1]) for f in chosen(pilot) if f.startswith(f"{kind}_"))


# --- which items -----------------------------------------------------------------------------


def test_types_have_their_share_and_each_has_at_least_one(tmp_path: Path) -> None:
    make_sized(tmp_path, {"Svg": [1] * 70, "Mask": [1] * 29, "Background": [1]})
    pilot = choose_pilot(config(tmp_path), 20)
    assert pilot.by_type == {"Svg": 14, "Mask": 5, "Background": 1}
    assert (len(chosen(pilot)), pilot.num_items, pilot.num_documents) == (20, 100, 3)


def test_sizes_are_covered_from_the_smallest_file_to_the_largest(tmp_path: Path) -> None:
    make_sized(tmp_path, {"Svg": list(range(1, 102))})
    assert sizes_of(choose_pilot(config(tmp_path), 6), "Svg") == [1, 21, 41, 61, 81, 101]


def test_pilot_of_one_item_picks_a_middle_size(tmp_path: Path) -> None:
    make_sized(tmp_path, {"Svg": [1, 5, 1000]})
    assert sizes_of(choose_pilot(config(tmp_path), 1), "Svg") == [5]


def test_equal_inputs_give_equal_pilots(tmp_path: Path) -> None:
    make_sized(tmp_path, {"Svg": [number % 7 for number in range(1000)], "Mask": [1] * 50})
    first, second = (chosen(choose_pilot(config(tmp_path), 30)) for _ in range(2))
    assert first == second


def test_items_come_from_the_whole_input_not_from_its_start(tmp_path: Path) -> None:
    files = [f"{number:04}.png" for number in range(3000)]
    for first in range(0, 3000, 100):
        part = files[first : first + 100]
        write_document(tmp_path, f"design_{first:04}", part, ["SvgElement"] * 100)
    thousands = Counter(file[0] for file in chosen(choose_pilot(config(tmp_path), 60)))
    assert set(thousands) == {"0", "1", "2"}
    assert min(thousands.values()) >= 8


def test_missing_and_refused_files_have_their_share(tmp_path: Path) -> None:
    make_sized(tmp_path, {"Svg": [1] * 10})
    write_document(tmp_path, "more", [f"../{n}.png" for n in range(10)], ["Svg"] * 10)
    files = chosen(choose_pilot(config(tmp_path), 10))
    assert sum(file.startswith("../") for file in files) == 5


def test_pilot_larger_than_the_input_is_the_input(tmp_path: Path) -> None:
    make_sized(tmp_path, {"Svg": [1] * 3, "Mask": [2]})
    pilot = choose_pilot(config(tmp_path), 100)
    assert (pilot.by_type, len(chosen(pilot))) == ({"Svg": 3, "Mask": 1}, 4)


def test_pilot_of_nothing_is_empty(tmp_path: Path) -> None:
    write_document(tmp_path, "design", ["a.png"], ["TextElement"])
    assert choose_pilot(config(tmp_path), 5).by_type == {}


def test_documents_of_the_chosen_items_are_enough_to_find_them(tmp_path: Path) -> None:
    files = [f"{number:03}.png" for number in range(300)]
    for first in range(0, 300, 3):
        write_document(tmp_path, f"d{first:03}", files[first : first + 3], ["SvgElement"] * 3)
    pilot = choose_pilot(config(tmp_path), 20)
    reader = InputReader(replace(pilot.input, documents=pilot.documents))
    assert sorted(entry.file for entry in reader if isinstance(entry, Item)) == chosen(pilot)
    assert reader.counts.documents == len(pilot.documents) <= 20


def test_limit_bounds_what_is_chosen_from(tmp_path: Path) -> None:
    make_sized(tmp_path, {"Svg": list(range(1, 101))})
    pilot = choose_pilot(config(tmp_path, limit=10), 5)
    assert sizes_of(pilot, "Svg") == [1, 3, 5, 8, 10]
    assert (pilot.num_items, pilot.input.limit) == (10, None)


def test_types_are_distinguished_up_to_a_bounded_number(tmp_path: Path) -> None:
    files = [f"{number}.png" for number in range(500)]
    write_document(tmp_path, "design", files, [f"Type{number}" for number in range(500)])
    pilot = choose_pilot(config(tmp_path), 200)
    assert len(pilot.by_type) == MAX_TYPES + 1
    assert sum(pilot.by_type.values()) == len(chosen(pilot)) == 200


@given(
    st.integers(1, 200),
    st.dictionaries(st.text(max_size=3), st.integers(1, 500), min_size=1, max_size=20),
)
def test_shares_add_up_and_never_exceed_what_there_is(size: int, available: dict[str, int]) -> None:
    shares = share_out(size, available)
    assert sum(shares.values()) == min(size, sum(available.values()))
    assert all(1 <= share <= available[kind] for kind, share in shares.items())
    assert len(shares) == min(size, len(available))


@given(st.integers(1, 60), st.integers(0, 50))
def test_spread_takes_this_many_different_files(number: int, available: int) -> None:
    files = [f"{index}.png" for index in range(available)]
    taken = spread(files, number, "/nowhere")
    assert len(taken) == len(set(taken)) == min(number, available)


def test_reading_chosen_files_finds_these_and_counts_no_others(tmp_path: Path) -> None:
    make_sized(tmp_path, {"Svg": [1, 2, 3]})
    bad = '{"images": [{"file": 5}, {"nothing": 1}]}'
    (tmp_path / "jsons/z.json").write_text(bad)
    (tmp_path / "json_detail/z.json").write_text('{"images": [1, 2], "types": ["a", "b"]}')
    reader = InputReader(config(tmp_path, only=frozenset({"Svg_2_1.png"})))
    assert [entry.file for entry in reader if isinstance(entry, Item)] == ["Svg_2_1.png"]
    assert (reader.counts.items, reader.counts.bad_entries) == (1, 0)


# --- what is said at its end -----------------------------------------------------------------


def said(captioned: int, every_s: float, arguments: tuple[str, ...] = ("--pilot", "9")) -> str:
    stats = RunStats([EngineFigures(0)])
    for number in range(captioned):
        stats.count_caption(0, 1, 1, 100.0 + number * every_s)
    return describe_pilot(
        stats,
        chosen={"Svg": 8, "": 1},
        num_items=100_009,
        num_documents=20,
        nouns=Nouns(),
        arguments=arguments,
    )


def test_pilot_names_the_full_run_and_its_time() -> None:
    text = said(9, 5.0, ("--model", "a b", "--pilot=9", "--output", "my out"))
    assert "Pilot: 9 of 100,009 items in 20 documents, across all file sizes: Svg 8, oth" in text
    assert "python -m vllm_caption --model 'a b' --output 'my out'" in text
    assert "It will take about 5 d 19 h for 100,000 other items at the pilot's 0.2 images/s" in text
    assert "a better estimate" not in text


def test_short_pilot_says_that_its_estimate_is_rough() -> None:
    assert "The pilot generated for only 800 ms; a larger one gives a better estimate." in said(
        9, 0.1
    )


@pytest.mark.parametrize("captioned", [0, 1])
def test_pilot_without_captions_estimates_nothing(captioned: int) -> None:
    assert "It will take" not in said(captioned, 1.0)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--pilot", "5", "--model=x"], ["--model=x"]),
        (["--model=x", "--pilot=5"], ["--model=x"]),
        (["--limit=5"], ["--limit=5"]),
        (["--pilot"], []),
    ],
)
def test_full_run_is_the_same_command_without_the_pilot(
    arguments: list[str], kept: list[str]
) -> None:
    assert without_flags(arguments, ("--pilot",)) == kept


# --- the whole job -----------------------------------------------------------------------------


def job(folder: Path, *flags: str) -> Result:
    return run(*input_flags(folder), f"--output={folder / 'out'}", "--quiet", *flags, command=FAKE)


def test_full_run_after_a_pilot_keeps_its_captions_and_adds_the_others(tmp_path: Path) -> None:
    files = make_input(tmp_path, 30)
    result = job(tmp_path, "--pilot=8")
    assert (result.exit_code, "Items: 8, captioned 8 (8 in this run)" in result.stdout) == (0, True)
    output = tmp_path / "out"
    made = {path: path.stat().st_mtime_ns for path in output.rglob("*.txt")}
    assert len(made) == 8
    assert "8 items" in result.stdout.splitlines()[-1]
    assert "<html" in (output / "report.html").read_text("utf-8")
    (line,) = (line for line in result.stdout.splitlines() if "Full run" in line)
    full = shlex.split(line.partition(": ")[2])
    assert full[:3] == ["python", "-m", "vllm_caption"]
    result = run(*full[3:], command=FAKE)
    assert "Items: 30, captioned 30 (22 in this run)" in result.stdout
    assert sorted(captions(output)) == sorted(files)
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_repeated_pilot_has_nothing_left_to_do(tmp_path: Path) -> None:
    make_input(tmp_path, 30)
    job(tmp_path, "--pilot=5")
    result = job(tmp_path, "--pilot=5")
    assert "Items: 5, captioned 5 (0 in this run)" in result.stdout
    assert "It will take" not in result.stdout


def test_pilot_whose_page_cannot_be_made_still_ends_normally(tmp_path: Path) -> None:
    make_input(tmp_path, 3)
    (tmp_path / "out/report.html").mkdir(parents=True)
    result = job(tmp_path, "--pilot=2")
    assert (result.exit_code, "The report could not be made: " in result.stdout) == (0, True)


def test_pilot_of_an_input_with_broken_files_ends_as_a_run_does(tmp_path: Path) -> None:
    files = make_input(tmp_path, 10)
    (tmp_path / "raw" / files[3]).unlink()
    result = job(tmp_path, "--pilot=10")
    assert (result.exit_code, "missing_file 1" in result.stdout) == (1, True)
    assert "Pilot: 10 of 10 items" in result.stdout
