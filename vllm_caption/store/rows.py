"""One row of the manifest per finished attempt of an item, and what a rerun keeps of it in memory.

`Row` is the only list of columns: the Parquet schema derives from its fields, in their order. A new
column is a new field with a default; in older parts and journals it then has that default.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import NoneType
from typing import Annotated, Final, NamedTuple, get_args, get_type_hints

import msgspec
import pyarrow as pa

Microseconds = Annotated[int, "since 1970, UTC"]


class Row(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One finished item."""

    file: str
    document: str
    element_index: int
    element_type: str
    image_path: str | None = None
    caption_path: str | None = None
    status: str
    caption: str | None = None
    finish_reason: str | None = None
    flags: tuple[str, ...] = ()
    error_kind: str | None = None
    error: str | None = None
    attempts: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    image_width: int | None = None
    image_height: int | None = None
    backdrop: str | None = None
    image_sha256: str | None = None
    same_as: str | None = None
    twin_key: str | None = None
    recipe_id: str | None = None
    model: str | None = None
    prompt_name: str | None = None
    engine: int | None = None
    queue_s: float | None = None
    prepare_s: float | None = None
    generate_s: float | None = None
    finished_at: Microseconds
    run_id: str

    def of_unknown_origin(self, caption: str) -> Row:
        """The same item with a caption of which nothing is recorded but its text."""
        return msgspec.structs.replace(
            self,
            caption=caption,
            flags=(),
            same_as=None,
            twin_key=None,
            recipe_id=None,
            model=None,
            prompt_name=None,
        )


_ARROW_TYPES: Final[dict[object, pa.DataType]] = {
    str: pa.string(),
    int: pa.int32(),
    float: pa.float32(),
    tuple[str, ...]: pa.list_(pa.string()),
    Microseconds: pa.timestamp("us", tz="UTC"),
}


def _arrow_type(hint: object) -> pa.DataType:
    if (found := _ARROW_TYPES.get(hint)) is not None:
        return found
    (inner,) = (part for part in get_args(hint) if part is not NoneType)  # of `X | None`
    return _ARROW_TYPES[inner]


SCHEMA: Final = pa.schema(
    [(name, _arrow_type(hint)) for name, hint in get_type_hints(Row, include_extras=True).items()]
)
"""Of every part of a manifest."""


def to_table(rows: Iterable[Row]) -> pa.Table:
    """Rows as columns."""
    return pa.Table.from_pylist([msgspec.structs.asdict(row) for row in rows], SCHEMA)


def from_table(table: pa.Table) -> Iterator[Row]:
    """Columns as rows; they must be those of SCHEMA."""
    place = table.schema.get_field_index("finished_at")
    microseconds = table["finished_at"].cast(pa.int64())
    for values in table.set_column(place, "finished_at", microseconds).to_pylist():
        yield msgspec.convert(values | {"flags": values["flags"] or ()}, Row)


class ItemState(NamedTuple):
    """What a rerun needs to know of an item's last row. ``flags``: with commas between them;
    ``read``: the item was met in this run's input."""

    status: str
    recipe_id: str | None
    flags: str
    error_kind: str | None
    read: bool = False

    @staticmethod
    def of(row: Row) -> ItemState:
        """The state that this row leaves its item in."""
        return ItemState(row.status, row.recipe_id, ",".join(row.flags), row.error_kind)
