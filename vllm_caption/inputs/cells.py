"""A Parquet file that holds its images, as Hugging Face's data sets do: one in each row, or a list.

Where a row has a list of images it is a design with its elements, and becomes a document. Scanning
reads no image: of Hugging Face's `{bytes, path}` it reads the paths alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from vllm_caption.config import ALL_COLUMNS, InputConfig
from vllm_caption.formatting import encodable_name, printable
from vllm_caption.images.containers import cell_name
from vllm_caption.inputs.documents import make_document
from vllm_caption.inputs.source import Element, Group, id_of, row_of
from vllm_caption.items import Document, SkippedDocument

CONTEXT: Final = ("category", "title", "keywords", "canvas_width", "canvas_height")
_BATCH: Final = 1024

Row = dict[str, Any]


def holds_images(path: Path, column: str) -> bool:
    """Whether a column has images in its cells rather than their names."""
    return _is_image(pq.read_schema(path).field(column).type)


def _is_image(kind: pa.DataType) -> bool:
    if _is_list(kind):
        return _is_image(kind.value_type)
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_image(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def read_cells(path: Path, image: str, config: InputConfig) -> Iterator[Group | SkippedDocument]:
    """Its rows. Raises OSError and pyarrow's errors."""
    with pq.ParquetFile(path) as opened:
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
            yield Group(
                Document(encodable_name(path.name)), _singles(path, image, numbered, config)
            )
            return
        for number, row in numbered:
            row = _with_labels(row, labels)
            name = encodable_name(f"{path.name}/{number:08}")
            yield _design(name, path, image, number, row, config)


def _rows(
    opened: pq.ParquetFile, image: str, columns: list[str], *, in_lists: bool
) -> Iterator[Row]:
    leaves = (opened.schema.column(number).path for number in range(len(opened.schema)))
    inner = [leaf for leaf in leaves if leaf.startswith(f"{image}.")]
    paths = [leaf for leaf in inner if leaf.endswith(".path")] or (inner if in_lists else [])
    if not (columns or paths):
        yield from ({} for _ in range(opened.metadata.num_rows))
        return
    for batch in opened.iter_batches(_BATCH, columns=[*columns, *paths]):
        yield from batch.to_pylist()


def _singles(
    path: Path, image: str, rows: Iterator[tuple[int, Row]], config: InputConfig
) -> Iterator[Element]:
    for number, row in rows:
        file = cell_name(path.name, image, number)
        entry, values = {"file": file}, _without(row, image)
        yield Element(entry, "", row=row_of(values, config), item_id=id_of(values, config))


def _design(
    name: str, path: Path, image: str, number: int, row: Row, config: InputConfig
) -> Group | SkippedDocument:
    images = row.get(image) or []
    types = row.get(config.type_column) if config.type_column else [""] * len(images)
    if not isinstance(types, list) or len(types) != len(images):
        found = len(types) if isinstance(types, list) else "no list of"
        reason = f"the row has {len(images)} images and {found} types"
        return SkippedDocument(name, "types_length", reason)
    values = _without(row, image)
    kept, item_id = row_of(values, config), id_of(values, config)
    files = (cell_name(path.name, image, number, place) for place in range(len(images)))
    elements = [
        Element({"file": file}, printable(kind), row=kept, item_id=item_id)
        for file, kind in zip(files, types, strict=True)
    ]
    return Group(make_document(name, {key: row.get(key) for key in CONTEXT}), elements)


def _without(row: Row, image: str) -> Row:
    return {name: value for name, value in row.items() if name != image}


def _class_labels(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the numbers in Hugging Face's ClassLabel columns."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
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
