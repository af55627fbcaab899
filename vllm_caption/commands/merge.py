"""``merge``: one manifest of what shards made, in one output folder or in several.

Invariants: no caption is lost or replaced, a folder that is merged into another stays as it is,
and a merge that was killed is finished by the next.
"""

from __future__ import annotations

import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, starmap
from pathlib import Path
from typing import NamedTuple

import msgspec

from vllm_caption.commands.run_line import check_holds_output, check_is_folder, parse_line
from vllm_caption.config import CaptionName, RunConfig, Shard, check_folder
from vllm_caption.driver.row_maker import caption_path
from vllm_caption.driver.run_input import common_input
from vllm_caption.errors import EXIT_OK, ItemError, UsageError
from vllm_caption.flags import Parser, add_output_folder, parse_path
from vllm_caption.formatting import counted, tally
from vllm_caption.images.files import check_name
from vllm_caption.monitoring.status import RunStatus, read_status
from vllm_caption.process import say
from vllm_caption.store.caption_files import CaptionFiles, open_captions
from vllm_caption.store.layout import INPUT, MANIFEST, parts, shard_folders, state_folders
from vllm_caption.store.lock import find_holder
from vllm_caption.store.naming import naming_of, read_naming
from vllm_caption.store.output import Output
from vllm_caption.store.reader import FolderRows, read_folder
from vllm_caption.store.recipe import read_recipes
from vllm_caption.store.rows import KnownItems, Row, hash_of

EXIT_INCOMPLETE = 1
MAX_MISSING = 10
"""How many missing shards are named."""


class Division(NamedTuple):
    """How the input was divided into shards; ``by_stem``: see `Shard`."""

    num_shards: int
    by_stem: bool


@dataclass(slots=True)
class Merged:
    """The result. ``lacking``: the shards that ran, each with what it lacks as a sentence, or "";
    ``statuses``: of all items now; ``taken``: of those from other folders; ``refused``: why items
    of other folders were not taken, as sentences; ``num_lost``: of these, those with a caption;
    ``outdone``: failed rows that were not taken, or not kept, since there is a caption elsewhere;
    ``failed``: items whose failed row was taken; ``unlike``: captions of each folder that are not
    those which the items have already."""

    lacking: dict[Division, dict[Shard, str]]
    statuses: Counter[str] = field(default_factory=Counter)
    taken: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    num_lost: int = 0
    outdone: int = 0
    failed: set[str] = field(default_factory=set)
    unlike: dict[Path, int] = field(default_factory=dict)


def run_merge(arguments: Sequence[str]) -> int:
    """The command; returns the exit code. Raises UsageError and RunStopped."""
    parser = Parser(
        prog="vllm-caption merge",
        description="Merge the manifests of the shards in an output folder, and copy captions and"
        " rows of other output folders, which stay unchanged, into it.",
        epilog="exit codes: 0 merged; 1 merged, but a shard is missing or unfinished, or a"
        " caption could not be taken; 2 usage or configuration; 3 could not continue (disk full);"
        " 130 interrupted.",
    )
    add_output_folder(parser)
    parser.add_argument(
        "folders",
        nargs="*",
        type=parse_path,
        metavar="DIR",
        help="output folders to copy from; a single one without --output is the one whose shards"
        " are merged",
    )
    options, named = parse_line(parser, arguments, "folders")
    root, folders = options.output, options.folders
    if "output" not in named and len(folders) == 1:  # as after `status`, `verify` and `report`
        root = folders.pop()
    if "output" not in named and folders and not root.is_dir():
        problem = "is the default and does not exist; name the folder to merge into with --output"
        raise UsageError("--output", root, problem)
    merged = merge(root, folders)
    say("\n".join(_lines(merged, root)), sys.stdout)
    is_complete = all(starmap(_is_complete, _divisions(merged))) and not merged.num_lost
    return EXIT_OK if is_complete else EXIT_INCOMPLETE


def merge(root: Path, folders: Sequence[Path] = ()) -> Merged:
    """Merge everything into ``root``. Raises UsageError and RunStopped."""
    if not folders:
        check_is_folder(root)
        check_holds_output("--output", root)
    for folder in folders:
        _check(folder, root)
    merged = _find_shards((root, *folders))
    output = Output(
        root, RunConfig().checkpoint_interval, choose_naming=partial(_choose_naming, folders)
    )
    complete = False
    try:
        states = output.item_states()
        for folder in folders:
            _take_recipes(folder, output)
            files = open_captions(folder, naming_of(folder))
            merged.unlike[folder] = read_folder(
                folder, partial(_take_rows, folder, files, output, states, merged)
            )
        if content := common_input(root, folders):
            output.replace(INPUT, content)  # so that `verify` and `export` know it
        merged.statuses.update(state.status for state in states.values())
        complete = True
    finally:
        output.close(complete=complete)
        for note in output.take_notes():
            print(note, file=sys.stderr)
    return merged


def _find_shards(folders: Sequence[Path]) -> Merged:
    """The shards that ran in these folders. One that is in several is finished if it is in one of
    them; otherwise the folder read last decides."""
    lacking: defaultdict[Division, dict[Shard, str]] = defaultdict(dict)
    for folder in folders:
        for shard, path in sorted(shard_folders(folder).items()):
            status = read_status(path)
            if status is None and not parts(path / MANIFEST):
                continue  # it was refused, or was killed before it had read the input
            lacks = _lack(shard, status)
            known = lacking[Division(shard.count, naming_of(folder) == "stem")]
            known[shard] = min(lacks, known.get(shard, lacks), key=bool)
    return Merged(lacking)


def _choose_naming(folders: Sequence[Path], root: Path) -> CaptionName:
    """As the folder has it; a new one takes that of the first folder that is merged into it."""
    return next(filter(None, map(read_naming, (root, *folders))), "file")


def _check(folder: Path, root: Path) -> None:
    check_folder("merge", folder, "the output folder of a run")
    check_holds_output("merge", folder)
    if os.path.realpath(folder) == os.path.realpath(root):
        raise UsageError("merge", folder, "is the folder to merge into; name only the others")
    if holder := find_holder(folder):
        raise UsageError("merge", folder, f"is in use by {holder}; wait for it")


def _take_recipes(folder: Path, output: Output) -> None:
    for state_folder in state_folders(folder):
        for recipe in read_recipes(state_folder).values():
            output.record_recipe(recipe)


def _take_rows(
    folder: Path,
    files: CaptionFiles,
    output: Output,
    states: KnownItems,
    merged: Merged,
    rows: FolderRows,
) -> int:
    """Returns how many captions were not taken because their items have others."""
    num_unlike, newer, refused = 0, set[str](), set[str]()
    for number, row in enumerate(rows.newest_first()):
        is_newest = row.file not in newer
        if number < len(rows.journal):
            newer.add(row.file)
        present = states.get(row.file)
        if present is not None and present.status == "captioned":
            if row.status == "failed":
                merged.outdone += 1
            elif is_newest:
                num_unlike += _is_other(row, files, states.trace(row.file).text_hash)
            continue
        try:
            text = _text(row, files)
            if text is not None:
                row = _save(row, text, output)
            elif present is None:
                output.save_row(row)
            else:
                continue
        except ItemError as error:
            if row.file not in refused:  # of a newer row
                refused.add(row.file)
                merged.refused.append(f"{row.file} of {folder}: {error}")
                merged.num_lost += row.status == "captioned"
            continue
        states.add(row)
        merged.taken[row.status] += 1
        if row.status == "failed":
            merged.failed.add(row.file)
        elif row.file in merged.failed:
            merged.failed.remove(row.file)
            merged.taken -= Counter(failed=1)
            merged.outdone += 1
    return num_unlike


def _is_other(row: Row, files: CaptionFiles, text_hash: int) -> bool:
    """Whether the caption of a captioned row is another than that which the item has already."""
    if hash_of(row.caption or "") == text_hash:
        return False
    try:
        return hash_of(_text(row, files) or "") != text_hash
    except ItemError:
        return False


def _text(row: Row, files: CaptionFiles) -> str | None:
    """The caption of a row's item, which counts wherever it is: also in the .txt that somebody
    wrote for an item that failed. Raises ItemError where a captioned row has none."""
    is_captioned = row.status == "captioned"
    try:
        check_name(row.file)  # a foreign manifest may hold anything
        text = files.read(row.file) or row.caption
    except ItemError:
        if is_captioned:
            raise
        return None
    if text is None and is_captioned:
        raise ItemError("caption_rejected", "neither its .txt nor its row has a caption")
    return text


def _save(row: Row, text: str, output: Output) -> Row:
    placed = caption_path(row.file, output.files.naming)
    row = msgspec.structs.replace(row, caption_path=placed)
    output.files.check_name(row.file)
    present = output.files.read(row.file)
    if present is not None and present != text:  # it has no row there yet, and stays
        row = row.of_unknown_origin(present)
        output.save_row(row)
        return row
    return output.save_caption(row if text == row.caption else row.of_unknown_origin(text))


def _lack(shard: Shard, status: RunStatus | None) -> str:
    """What a shard has still to do, by what its last run wrote; empty where that is nothing."""
    if status is None:
        return f"shard {shard} has no status yet; run it again"
    if status.is_part:
        return f"shard {shard} had only a pilot or a --limit; run it again without"
    left = status.total - status.finished
    if status.scanning and left > 0:
        more = f"{counted(left, 'item')} left, and more that it has not read"
        return f"shard {shard} has {more}; run it again"
    if status.scanning:
        return f"shard {shard} has not read its whole input; run it again"
    return f"shard {shard} has {counted(left, 'item')} left; run it again" if left > 0 else ""


def _divisions(merged: Merged) -> list[tuple[Division, dict[Shard, str]]]:
    """All divisions of the input. If all shards of one of them have finished, nothing is left of
    the others, so only that one counts."""
    found = sorted(merged.lacking.items())
    return [each for each in found if _is_complete(*each)][-1:] or found


def _is_complete(division: Division, shards: dict[Shard, str]) -> bool:
    """Whether all shards have finished."""
    return len(shards) == division.num_shards and not any(shards.values())


def _missing(division: Division, shards: dict[Shard, str]) -> str:
    """Which shards did not run."""
    numbers = range(1, division.num_shards + 1)
    absent = (n for n in numbers if Shard(n, division.num_shards) not in shards)
    shown = list(islice(absent, MAX_MISSING + 1))
    return ", ".join([*map(str, shown[:MAX_MISSING]), *["…"] * (len(shown) > MAX_MISSING)])


def _lines(merged: Merged, root: Path) -> Iterator[str]:
    divisions = _divisions(merged)
    for division, shards in divisions:
        how = ""
        if len({division.by_stem for division, _ in divisions}) > 1:
            how = f" with --caption-name {'stem' if division.by_stem else 'file'}"
        left = f"; missing: {missing}" if (missing := _missing(division, shards)) else ""
        yield f"Shards: {len(shards)} of {division.num_shards}{how}{left}"
        yield from (f"  unfinished: {lacks}" for lacks in shards.values() if lacks)
    if merged.taken:
        yield f"From other folders: {tally(merged.taken)}"
        if merged.outdone:
            rows, has = counted(merged.outdone, "failed row"), "another folder has"
            its = "its caption" if merged.outdone == 1 else "their captions"
            yield f"  not taken: {rows}, because {has} {its}"
    for folder, number in merged.unlike.items():
        if number:
            yield f"  not taken: {counted(number, 'caption')} of {folder}: the items have others"
    for sentence in merged.refused[:3]:
        yield f"  not taken: {sentence}"
    if len(merged.refused) > 3:
        yield f"  not taken: {len(merged.refused) - 3:,} more"
    yield f"Items: {tally(merged.statuses) or 'none'}"
    yield f"Manifest: {root}/{MANIFEST}"
