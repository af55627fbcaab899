"""``report``: one HTML file about one output folder, or about several side by side.

Invariant: nothing but the page itself is written, whole or not at all, and no lock is taken, so it
may be made during a run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vllm_caption.commands.report.compare import compare
from vllm_caption.commands.report.items import align, sample
from vllm_caption.commands.report.page import make_section, render
from vllm_caption.commands.report.payload import make_payload
from vllm_caption.commands.report.records import read_all
from vllm_caption.commands.report.thumbnails import choose, make_thumbnails
from vllm_caption.commands.run_line import parse_line
from vllm_caption.commands.target import check_target
from vllm_caption.config import RunConfig, check_folder
from vllm_caption.errors import EXIT_OK, UsageError
from vllm_caption.flags import Parser, above_zero, natural, parse_images_root, parse_path, positive
from vllm_caption.formatting import counted
from vllm_caption.process import show
from vllm_caption.store.atomic import write_file
from vllm_caption.store.layout import COMPARISON, REPORT, numbered_temporary_name

DEFAULT_GALLERY, DEFAULT_ITEMS = 300, 200_000
MANY_PICTURES = 2000
"""Above this number, a message says that pictures are being made."""


def run_report(arguments: Sequence[str]) -> int:
    """The command; returns the exit code. Raises UsageError and RunStopped."""
    options, _ = parse_line(_parser(), arguments, "folders")
    if options.folders and options.output is not None:
        remedy = "name the folders once: with --output, or one after the other without it"
        raise UsageError("--output", options.output, remedy)
    roots = _distinct(options.folders or [options.output or RunConfig().output])
    target: Path = options.html or roots[0] / _name(len(roots))
    if options.html:
        check_target("--html", target, replaces=True)
    root: Path | str | None = options.images_root
    if isinstance(root, Path):
        check_folder("--images-root", root, "the folder that the names of images start from")
    price = options.gpu_hour_price
    show(make_report(roots, target, options.gallery, options.items, root, price))
    return EXIT_OK


def make_report(
    roots: list[Path],
    target: Path,
    num_pictures: int = DEFAULT_GALLERY,
    num_items: int = DEFAULT_ITEMS,
    images_root: Path | str | None = None,
    gpu_hour_price: float | None = None,
) -> str:
    """Write the page; returns a line about it, and one about each folder whose items are not those
    of the first. Raises UsageError and RunStopped."""
    started_s = time.monotonic()
    records = read_all(roots)
    labels = [of_folder.label for of_folder in records]
    everything = align(records)
    comparisons = compare(everything, labels)
    items = sample(everything, num_items)
    sections = [make_section(of_folder, gpu_hour_price) for of_folder in records]
    recipes = {id_: recipe for r in records for id_, recipe in r.recipes.items()}
    chosen = choose(items, num_pictures)
    if len(chosen) > MANY_PICTURES:
        print(f"Making {len(chosen):,} pictures ...", file=sys.stderr, flush=True)
    thumbnails = make_thumbnails(items, chosen, recipes, images_root)
    payload = make_payload(items, labels, recipes, thumbnails, images_root)
    num_made = len(thumbnails.pictures) if num_pictures else None
    is_limited = len(chosen) == num_pictures
    page = render(sections, comparisons, items, payload, num_made, more_pictures=is_limited)
    content = page.encode()
    _write(target, content)
    shown = "" if len(items) == items.total else f"{len(items):,} of "
    pictures = counted(len(thumbnails.pictures), "picture")
    line = (
        f"{target}: {shown}{counted(items.total, 'item')}, {pictures},"
        f" {len(content) / 1e6:.1f} MB, {time.monotonic() - started_s:.1f} s"
    )
    unlike = (c for c in comparisons if not c.same_items)
    return "\n".join([line, *(c.describe_items(labels[0], c.label) for c in unlike)])


def _parser() -> Parser:
    parser = Parser(
        prog="vllm-caption report",
        usage="%(prog)s [OUTPUT ...] [FLAG ...]",
        description="Make one HTML page from an output folder: numbers, charts and a searchable"
        " gallery; or compare several folders side by side. Needs no engine and no network.",
        epilog="exit codes: 0 the page is written; 2 usage or configuration; 3 a part of the"
        " manifest is damaged; 130 interrupted.",
    )
    parser.formatter_class = argparse.HelpFormatter  # the defaults depend on each other
    _add_folders(parser)
    parser.add_argument(
        "--gpu-hour-price",
        type=above_zero,
        metavar="PRICE",
        help="price of one GPU for one hour; costs are then shown, in the same currency",
    )
    parser.add_argument(
        "--gallery",
        type=natural,
        metavar="N",
        default=DEFAULT_GALLERY,
        help="items with a picture (default: %(default)s)",
    )
    parser.add_argument(
        "--items",
        type=positive,
        metavar="N",
        default=DEFAULT_ITEMS,
        help="items in the gallery; if there are more, all failed and flagged ones and a sample of"
        " the others (default: %(default)s)",
    )
    return parser


def _add_folders(parser: Parser) -> None:
    parser.add_argument(
        "folders",
        nargs="*",
        type=parse_path,
        metavar="OUTPUT",
        help="an output folder, or several to compare side by side",
    )
    parser.add_argument(
        "--output", type=parse_path, help=f"folder of captions (default: {RunConfig().output})"
    )
    parser.add_argument(
        "--html",
        type=parse_path,
        metavar="FILE",
        help=f"the page (default: {REPORT} in OUTPUT; of several, {COMPARISON} in the first)",
    )
    parser.add_argument(
        "--images-root",
        type=parse_images_root,
        help="where the images are now (default: where the run found them)",
    )


def _name(num_folders: int) -> str:
    return REPORT if num_folders == 1 else COMPARISON


def _distinct(roots: list[Path]) -> list[Path]:
    for number, root in enumerate(roots):
        if root in roots[:number]:
            raise UsageError("report", root, "is named twice; name different output folders")
    return roots


def _write(target: Path, content: bytes) -> None:
    # No lock is held, so two processes may write the same page.
    temporary = target.with_name(numbered_temporary_name(target.name, os.getpid()))
    try:
        write_file(target, content, temporary=os.fspath(temporary))
    except OSError as error:
        remedy = "name another file, or fix its permissions"
        problem = f"cannot be written ({error.strerror}); {remedy}"
        raise UsageError("--html", target, problem) from error
