"""``export``: a record per element of the input, with its caption, in a file for other programs.

Invariants: the output folder is only read, so that an export may run beside a run; every element of
the input, up to --limit, that is not skipped by its type has its record, in the input's order, also
where it failed or was never tried; the file is seen whole or not at all.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vllm_caption.commands.run_line import check_holds_output, input_of_line, parse_line
from vllm_caption.commands.target import check_target
from vllm_caption.config import ALL_COLUMNS, InputConfig
from vllm_caption.errors import EXIT_OK, ItemError, UsageError
from vllm_caption.flags import (
    Parser,
    add_input,
    add_output_folder,
    parse_path,
)
from vllm_caption.formatting import counted, first_line, printable
from vllm_caption.images.files import check_name
from vllm_caption.inputs.choice import open_source
from vllm_caption.inputs.reader import usable_name
from vllm_caption.inputs.source import Element, Group
from vllm_caption.items import SkippedDocument
from vllm_caption.process import show
from vllm_caption.store.caption_files import open_captions
from vllm_caption.store.disk.folding import infer_folding
from vllm_caption.store.naming import naming_of
from vllm_caption.store.reader import FolderRows, read_folder
from vllm_caption.store.rows import CaptionTrace, hash_of

SUFFIXES: Final = (".jsonl", ".csv", ".parquet")
METADATA: Final = "metadata.jsonl"
"""Under this name `datasets.load_dataset("imagefolder")` reads a file, with `file_name` in it."""
RESULT: Final = ("caption", "flags", "error_kind", "error", "structured")
"""What a row says of an item; null where nothing is recorded."""
_PREFIX: Final = "input_"
_BATCH: Final = 10_000

_NO_COLUMN: Final = (OverflowError, TypeError, pa.ArrowException)
"""What pyarrow raises for values that cannot form a column."""

Record = dict[str, Any]


def run_export(arguments: Sequence[str]) -> int:
    """The command; returns the exit code. Raises UsageError."""
    parser = _parser()
    options, named = parse_line(parser, arguments, "file")
    target: Path = options.file
    if target.suffix not in SUFFIXES:
        raise UsageError("FILE", target, f"must end in one of {', '.join(SUFFIXES)}")
    check_target("FILE", target, replaces=True)
    config = replace(input_of_line(options, named), columns=(ALL_COLUMNS,))
    _check_target(target, config)
    check_holds_output("--output", options.output)
    source = open_source(config)
    source.check()
    results = _Results(options.output)
    records = partial(_records, config, results, target.name == METADATA)
    names = () if target.suffix == ".jsonl" else _names(records())
    results.num_used = 0
    number = write(target, records(), names)
    show(f"{counted(number, 'record')}, {results.num_used:,} with a caption: {target}")
    return EXIT_OK


def _check_target(target: Path, config: InputConfig) -> None:
    """Raise UsageError where the file would replace the input, or become a part of it."""
    path = config.input
    if path is None or not os.path.exists(path):  # noqa: PTH110 (never raises)
        return
    if target.exists() and target.samefile(path):
        raise UsageError("FILE", target, "is the input itself; choose another name")
    is_part = target.suffix == ".parquet" and path.is_dir() and target.parent.samefile(path)
    if is_part:
        raise UsageError(
            "FILE", target, "would be read as a part of --input; choose another folder"
        )


def _parser() -> Parser:
    parser = Parser(
        prog="vllm-caption export",
        usage="%(prog)s FILE [OUTPUT] [FLAG ...]",
        description="Write one record per element of the input: its caption and flags, or its"
        " error, and the columns of the input table. The input is that of the last run, unless you"
        " name another; only then do the defaults below apply.",
        epilog="exit codes: 0 written; 2 usage or configuration, or FILE cannot be written; 3 a"
        " part of the manifest is damaged; 130 interrupted.",
    )
    text = "file to write, before all flags; ends in .jsonl, .csv or .parquet. For `load_dataset("
    text += f'"imagefolder")` of the `datasets` library: {METADATA} in the folder of the images'
    parser.add_argument("file", type=parse_path, metavar="FILE", help=text)
    add_input(parser.add_argument_group("input"))
    add_output_folder(parser.add_argument_group("output"), place="second")
    return parser


class _Results:
    """The last row of each item, in columns: a million take a few hundred megabytes. What somebody
    wrote into a .txt counts instead of its row, as for a run."""

    def __init__(self, root: Path) -> None:
        columns = ("file", "status", "finished_at", *RESULT)
        tables = read_folder(root, partial(_tables, columns))
        self._rows = pa.concat_tables(tables).combine_chunks()
        self._made_us = self._rows["finished_at"].cast(pa.int64())
        self._places = {file: n for n, file in enumerate(self._rows["file"].to_pylist())}
        self._files = open_captions(root, naming_of(root), folding=infer_folding(root))
        has_txt = pc.and_(
            pc.equal(self._rows["status"], "captioned"),
            pc.not_equal(pc.fill_null(self._rows["error_kind"], ""), "output_conflict"),
        )
        self._files.claims.record(self._rows["file"].filter(has_txt).to_pylist())
        self.num_used = 0

    def of(self, file: str) -> Record:
        """The result of an item, by the columns of `RESULT`; all null if nothing is recorded."""
        place = self._places.get(file)
        found = dict.fromkeys(RESULT)
        if place is not None:
            found = {name: self._rows[name][place].as_py() for name in RESULT}
        if file and (text := self._written(file, found["caption"], place)) is not None:
            found = dict.fromkeys(RESULT) | {"caption": text}
        self.num_used += found["caption"] is not None
        return found | {"flags": ",".join(found["flags"] or ()) or None}

    def _written(self, file: str, caption: str | None, place: int | None) -> str | None:
        """The text of a .txt that is not from the row; None if there is none."""
        try:
            check_name(file)
            self._files.check_name(file)
            if caption is not None and place is not None:
                size, made_us = len(caption.encode()), self._made_us[place].as_py()
                trace = CaptionTrace(size, hash_of(caption), made_us)
                if self._files.compare(file, trace, surely=False) != "edited":
                    return None
            return self._files.read(file)
        except ItemError:
            return None


def _tables(columns: Sequence[str], rows: FolderRows) -> list[pa.Table]:
    return list(rows.tables(columns))


def _records(config: InputConfig, results: _Results, for_datasets: bool) -> Iterator[Record]:
    skip_types = frozenset(name.casefold() for name in config.skip_types)
    files: set[str] = set()
    for group in open_source(config).documents():
        if isinstance(group, SkippedDocument):
            yield _skipped(group, for_datasets)
            continue
        for index, element in enumerate(group.elements, group.first_index):
            if element.element_type.casefold() in skip_types:
                continue
            record = _record(group, index, element, results, for_datasets)
            yield record
            if config.limit is not None and (file := record[_file_column(for_datasets)]):
                files.add(file)
                if len(files) == config.limit:
                    return


def _file_column(for_datasets: bool) -> str:
    return "file_name" if for_datasets else "file"


def _skipped(document: SkippedDocument, for_datasets: bool) -> Record:
    """A document, or a row with several images, that was left out as a whole."""
    named = {_file_column(for_datasets): None, "document": document.document}
    found = dict.fromkeys(RESULT) | {"error_kind": document.kind, "error": document.reason}
    return {**named, **found}


def _record(
    group: Group, index: int, element: Element, results: _Results, for_datasets: bool
) -> Record:
    file, problem = "", None
    try:
        file = usable_name(element.entry)
    except ItemError as error:
        problem = error
    if element.fault is not None:  # a run whose prompt uses no column may have done without
        problem = ItemError("engine_error" if file else "bad_name", element.fault)
    ours: Record = {_file_column(for_datasets): file or None}
    if element.item_id is not None:
        ours["item_id"] = element.item_id
    if element.row is None:
        ours |= {"document": group.document.name, "element_index": index}
        ours |= {"element_type": element.element_type or None}
    found = results.of(file)
    if problem is not None and found["caption"] is None and found["error_kind"] is None:
        found |= {"error_kind": problem.kind, "error": problem.reason}
    ours |= found
    theirs = {}
    for name, value in (element.row or {}).items():
        while name in ours or name in theirs:
            name = f"{_PREFIX}{name}"
        theirs[name] = value
    return {**theirs, **ours}


def _names(records: Iterable[Record]) -> tuple[str, ...]:
    """Every column that a record has; of JSON, a late one may have more than the first."""
    return tuple(dict.fromkeys(name for record in records for name in record))


# --- the file ------------------------------------------------------------------------------------


def write(target: Path, records: Iterable[Record], names: Sequence[str] = ()) -> int:
    """Write the records; returns how many. ``names``: their columns; by default those of the first
    records. Raises UsageError."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as opened:
            number = _WRITERS[target.suffix](opened, iter(records), names)
        temporary.replace(target)
    except OSError as error:
        raise UsageError("FILE", target, f"cannot be written ({error.strerror})") from error
    except (*_NO_COLUMN, RecursionError) as error:
        remedy = f"a column holds values of several types, or of one unknown to Parquet ({error})"
        raise UsageError("FILE", target, f"{remedy}; export to .jsonl") from error
    finally:
        temporary.unlink(missing_ok=True)
    return number


def _write_lines(opened: IO[bytes], records: Iterator[Record], names: Sequence[str]) -> int:
    number = 0
    for record in records:
        opened.write(msgspec.json.encode(record) + b"\n")
        number += 1
    return number


def _write_csv(opened: IO[bytes], records: Iterator[Record], names: Sequence[str]) -> int:
    first = list(islice(records, _BATCH))
    writer = csv.DictWriter(_Lines(opened), names or _names(first), extrasaction="ignore")
    writer.writeheader()
    number = 0
    for record in chain(first, records):
        writer.writerow({name: _in_cell(value) for name, value in record.items()})
        number += 1
    return number


class _Lines:
    """Text for `csv`, as UTF-8."""

    def __init__(self, opened: IO[bytes]) -> None:
        self._opened = opened

    def write(self, text: str) -> None:
        self._opened.write(text.encode("utf-8", "replace"))


def _in_cell(value: object) -> object:
    return msgspec.json.encode(value).decode() if isinstance(value, list | dict) else value


def _write_parquet(opened: IO[bytes], records: Iterator[Record], names: Sequence[str]) -> int:
    first = list(islice(records, _BATCH))
    names = names or _names(first) or RESULT
    schema = _without_nulls(_table(first, names).schema)
    number, batch = 0, first
    with pq.ParquetWriter(opened, schema) as writer:
        while batch:
            writer.write_table(_table(batch, names, schema))
            number += len(batch)
            batch = list(islice(records, _BATCH))
    return number


def _table(
    records: Sequence[Record], names: Sequence[str], schema: pa.Schema | None = None
) -> pa.Table:
    columns = {}
    for name in names:
        kind = None if schema is None else schema.field(name).type
        try:
            columns[name] = pa.array([record.get(name) for record in records], kind)
        except _NO_COLUMN as error:
            raise TypeError(f"{printable(name)}: {first_line(error)}") from error
    return pa.Table.from_pydict(columns, schema)


def _without_nulls(schema: pa.Schema) -> pa.Schema:
    """A column of nothing so far is one of text."""
    fields = (f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in schema)
    return pa.schema(list(fields))


_WRITERS: Final = {".jsonl": _write_lines, ".csv": _write_csv, ".parquet": _write_parquet}
