"""A Parquet file that contains its images, like Hugging Face data sets: one per row, or a list.

A row with a list of images is a design with its elements, and becomes a document. Scanning reads no
image: of Hugging Face's `{bytes, path}` it reads only the paths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.config import ALL_COLUMNS, InputConfig
from vllm_caption.formatting import counted, printable
from vllm_caption.images.containers import cell_name, column_of
from vllm_caption.inputs.documents import make_document
from vllm_caption.inputs.rows import Broken, Row, parquet_rows
from vllm_caption.inputs.source import (
    Element,
    Group,
    id_of,
    name_of_container,
    plain_value,
    row_of,
    type_of,
)
from vllm_caption.items import Document, SkippedDocument

CONTEXT: Final = ("category", "title", "keywords", "canvas_width", "canvas_height")
_BATCH: Final = 1024
_IMAGES_AT_A_TIME: Final = 16
"""Batch size if images have to be read to learn how many there are."""


def holds_images(path: Path, column: str) -> bool:
    """Whether the cells of a column hold images rather than names of images."""
    return _is_image(pq.read_schema(path.absolute()).field(column).type)


def holds_lists(path: Path, column: str) -> bool:
    """Whether the cells of a column hold lists of images."""
    kind = pq.read_schema(path.absolute()).field(column).type
    return _is_list(kind) and _is_image(kind)


def _is_image(kind: pa.DataType) -> bool:
    if _is_list(kind) or pa.types.is_dictionary(kind):
        return _is_image(kind.value_type)
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_image(kind.field(place).type)
    types = pa.types
    tests = types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary
    return any(test(kind) for test in tests)


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    tests = types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view
    return any(test(kind) for test in (*tests, types.is_large_list_view))


def read_cells(path: Path, image: str, config: InputConfig) -> Iterator[Group | SkippedDocument]:
    """The documents of one file. Raises UsageError, and `rows.FAULTS`."""
    container = name_of_container(path, config)
    with pq.ParquetFile(path.absolute()) as opened:
        schema = opened.schema_arrow
        in_lists = _is_list(schema.field(image).type)
        everything = [name for name in schema.names if name != image]
        wanted = everything if ALL_COLUMNS in config.columns else list(config.columns)
        wanted += [name for name in (config.id_column, config.type_column) if name]
        if in_lists:
            wanted += [name for name in CONTEXT if name in schema.names]
        numbered = enumerate(_rows(opened, image, [*dict.fromkeys(wanted)], in_lists=in_lists))
        labels = _class_labels(schema)
        if not in_lists:
            elements = _singles(container, image, numbered, labels, config)
            yield Group(Document(path.name), elements)
            return
        for number, row in numbered:
            name = f"{path.name}/{number:08}"
            if isinstance(row, Broken):
                yield SkippedDocument(name, "unreadable", row.reason)
                continue
            cell = cell_name(container, image, number)
            yield _design(name, cell, image, _with_labels(row, labels), config)


def _rows(
    opened: pq.ParquetFile, image: str, columns: list[str], *, in_lists: bool
) -> Iterator[Row | Broken]:
    if not (columns or in_lists):
        yield from ({} for _ in range(opened.metadata.num_rows))
        return
    inner: list[str] = []
    batch_size = _BATCH
    if in_lists:
        leaves = [opened.schema.column(number) for number in range(len(opened.schema))]
        inner = [leaf.path for leaf in leaves if column_of(opened, leaf.path) == image]
        if paths := [leaf for leaf in inner if leaf.endswith(".path")]:
            inner = paths
        else:
            batch_size = _IMAGES_AT_A_TIME
    yield from parquet_rows(opened, [*columns, *inner], batch_size)


def _singles(
    container: str,
    image: str,
    rows: Iterator[tuple[int, Row | Broken]],
    labels: Mapping[str, list[str]],
    config: InputConfig,
) -> Iterator[Element]:
    for number, row in rows:
        entry = {"file": cell_name(container, image, number)}
        if isinstance(row, Broken):
            yield Element(entry, "", row.reason)
            continue
        values = _with_labels(row, labels)
        kind, row_id = type_of(values, config), id_of(values, config)
        yield Element(entry, kind, row=row_of(values, config), item_id=row_id)


def _design(
    name: str, cell: str, image: str, row: Row, config: InputConfig
) -> Group | SkippedDocument:
    images = row.get(image) or []
    types = row.get(config.type_column) if config.type_column else [""] * len(images)
    if not isinstance(types, list) or len(types) != len(images):
        found = counted(len(types), "type") if isinstance(types, list) else "no list of types"
        reason = f"the row has {counted(len(images), 'image')} and {found}"
        return SkippedDocument(name, "types_length", reason)
    values = {name: value for name, value in row.items() if name != image}
    kept, item_id = row_of(values, config), id_of(values, config)
    elements = [
        Element({"file": f"{cell}/{place}"}, printable(plain_value(kind)), None, kept, item_id)
        for place, kind in enumerate(types)
    ]
    return Group(make_document(name, {key: row.get(key) for key in CONTEXT}), elements)


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """The label of each number in Hugging Face ClassLabel columns."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, RecursionError, TypeError, ValueError):
        return {}
    found: dict[str, list[str]] = {}
    for name, feature in features.items() if isinstance(features, dict) else ():
        while isinstance(feature, dict) and "names" not in feature and "feature" in feature:
            feature = feature["feature"]
        feature = feature[0] if isinstance(feature, list) and feature else feature
        names = feature.get("names") if isinstance(feature, dict) else None
        if isinstance(names, list):
            found[name] = [str(label) for label in names]
    return found


def _with_labels(row: Row, labels: Mapping[str, list[str]]) -> Row:
    return row | {name: _label(row[name], names) for name, names in labels.items() if name in row}


def _label(value: object, names: list[str]) -> object:
    if isinstance(value, list):
        return [_label(one, names) for one in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value
