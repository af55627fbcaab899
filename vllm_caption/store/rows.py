"""The row of the manifest for an item, and what a rerun keeps of it in memory.

`Row` is the only list of columns: the Parquet schema is derived from its fields, in their order. To
add a column, add a field with a default, which older parts and journals then have.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Final, NamedTuple, get_args, get_type_hints

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

Microseconds = Annotated[int, "since 1970, UTC"]


class Row(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One finished item. Null is a value that is not known, or does not apply."""

    file: str
    """The item: its name in the input."""
    document: str
    """What names the item first: a design, table, TABLE/ROW (if rows hold lists), tar or folder."""
    element_index: int
    """Its position there, from 0: of a table, the row; of a folder, in the order of names."""
    element_type: str
    """As in the design, or in ``--type-column`` of the table; otherwise empty."""
    item_id: str | None = None
    """The value of ``--id-column``, as text."""
    image_path: str | None = None
    """Where the image was read: an absolute path, or a URI."""
    caption_path: str | None = None
    """The .txt, relative to the output folder; null with ``--no-txt``."""
    status: str
    """Either "captioned" or "failed"."""
    caption: str | None = None
    """What the model wrote, before anybody edited the .txt; what an adopted .txt said."""
    structured: str | None = None
    """The fields of the answer as JSON, if the prompt asks for fields."""
    finish_reason: str | None = None
    """vLLM's: "stop", or "length" if ``--max-tokens`` cut the answer off."""
    flags: tuple[str, ...] = ()
    """The rules that the caption breaks, worst first."""
    error_kind: str | None = None
    """Why the item failed, or why a new caption for it failed; the kinds are in `errors`."""
    error: str | None = None
    """The same as a sentence."""
    attempts: int = 0
    """How often an engine tried; 0 for a copied or adopted caption, and for a refused item."""
    prompt_tokens: int | None = None
    """Tokens of the request, those of the image included."""
    output_tokens: int | None = None
    """Tokens of the answer."""
    image_width: int | None = None
    """Pixels of the upright image before any scaling, as `image_height`."""
    image_height: int | None = None
    backdrop: str | None = None
    """What transparency was composited onto: "white", "black", "gray", or "none"."""
    image_sha256: str | None = None
    """Of the bytes of the file, hexadecimal."""
    same_as: str | None = None
    """The item whose caption was copied, because the two images are identical."""
    twin_key: str | None = None
    """Equal for items that may share a caption."""
    recipe_id: str | None = None
    """What made the caption, as recipes.json spells it out; null if it was adopted."""
    model: str | None = None
    """The model of that recipe."""
    prompt_name: str | None = None
    """The prompt of that recipe."""
    engine: int | None = None
    """The number of the engine that captioned the item, or that failed on it last."""
    queue_s: float | None = None
    """Seconds of waiting for one of ``--prepare-threads``."""
    prepare_s: float | None = None
    """Seconds of reading and decoding the image."""
    render_queue_s: float | None = None
    """Seconds of waiting for the engine's rendering thread."""
    render_s: float | None = None
    """Seconds in the chat template, the tokenizer and the image processor."""
    generate_s: float | None = None
    """Seconds in the engine, the wait for one of ``--max-num-seqs`` places included."""
    finished_at: Microseconds
    """When the row was made."""
    run_id: str
    """The run that made it."""

    def of_unknown_origin(self, caption: str) -> Row:
        """The same item with a caption of unknown origin."""
        return msgspec.structs.replace(
            self,
            status="captioned",
            caption=caption,
            structured=None,
            flags=(),
            error_kind=None,
            error=None,
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
"""The schema of every part of a manifest."""


def to_table(rows: Sequence[Row]) -> pa.Table:
    """Convert rows to columns."""
    if not rows:
        return SCHEMA.empty_table()
    columns = zip(*map(msgspec.structs.astuple, rows), strict=True)
    arrays = [pa.array(*column) for column in zip(columns, SCHEMA.types, strict=True)]
    return pa.Table.from_arrays(arrays, schema=SCHEMA)


def fits_table(rows: Sequence[Row]) -> bool:
    """Whether the numbers in these rows fit their columns."""
    try:
        to_table(rows)
    except (pa.ArrowException, OverflowError):
        return False
    return True


def from_table(table: pa.Table) -> Iterator[Row]:
    """Convert columns, which must be those of SCHEMA, to rows."""
    place = table.schema.get_field_index("finished_at")
    microseconds = table["finished_at"].cast(pa.int64())
    for values in table.set_column(place, "finished_at", microseconds).to_pylist():
        yield msgspec.convert(values | {"flags": values["flags"] or ()}, Row)


# --- what a rerun keeps in memory ------------------------------------------------------------


class ItemState(NamedTuple):
    """What a rerun needs of an item's last row. ``flags``: separated by commas; ``run_id``: the run
    that wrote the row; ``has_txt``: whether it wrote a .txt as well."""

    status: str
    recipe_id: str | None
    flags: str
    error_kind: str | None
    run_id: str = ""
    has_txt: bool = True

    @staticmethod
    def of(row: Row) -> ItemState:
        """The state of an item whose last row is this one."""
        flags, has_txt = ",".join(row.flags), row.caption_path is not None
        return ItemState(row.status, row.recipe_id, flags, row.error_kind, row.run_id, has_txt)


class CaptionTrace(NamedTuple):
    """What is kept of a row's caption to recognise it in its .txt: its size as UTF-8, the hash of
    its text (`hash_of`), and when it was made, in microseconds since 1970."""

    num_bytes: int
    text_hash: int
    made_us: int


def hash_of(caption: str) -> int:
    """A 64-bit hash, keyed per process, of a caption as it reads back from a text file."""
    if "\r" in caption:
        caption = caption.replace("\r\n", "\n").replace("\r", "\n")
    return hash(caption)


class KnownItems(Mapping[str, ItemState]):
    """The last state of every item that has a row, with the trace of its caption.

    A million items take about 80 MB besides their names: states are few and shared, and what
    differs from item to item is in arrays.
    """

    COLUMNS: Final = (
        *("file", "status", "recipe_id", "flags", "error_kind", "run_id"),
        *("caption", "caption_path", "finished_at"),
    )

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._states: list[ItemState] = []
        self._numbers: dict[ItemState, int] = {}
        self._state_of = array("I")
        self._num_bytes = array("q")
        self._text_hash = array("q")
        self._made_us = array("q")
        self._is_read = bytearray()

    def __getitem__(self, file: str) -> ItemState:
        return self._states[self._state_of[self._places[file]]]

    def get(self, file: str, default: Any = None) -> Any:
        """Replaces `Mapping.get`, which is five times slower and is called a million times."""
        place = self._places.get(file)
        return default if place is None else self._states[self._state_of[place]]

    def __contains__(self, file: object) -> bool:
        return file in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def txt_owners(self) -> Iterator[str]:
        """The captioned items that own their .txt, unlike those that found its name taken."""
        for file, state in self.items():
            if state.status == "captioned" and state.error_kind != "output_conflict":
                yield file

    def trace(self, file: str) -> CaptionTrace:
        """The trace of the caption in an item's row."""
        place = self._places[file]
        return CaptionTrace(self._num_bytes[place], self._text_hash[place], self._made_us[place])

    def add(self, row: Row) -> None:
        """Add a row, newer than those before."""
        caption = row.caption or ""
        self._places[row.file] = len(self._state_of)
        self._state_of.append(self._number(ItemState.of(row)))
        self._num_bytes.append(len(caption.encode("utf-8", "surrogatepass")))
        self._text_hash.append(hash_of(caption))
        self._made_us.append(row.finished_at)
        self._is_read.append(False)

    def extend(self, rows: pa.Table) -> None:
        """Add rows, which have COLUMNS and are newer than those before."""
        flags = pc.fill_null(pc.binary_join(rows["flags"], ","), "")
        captions = pc.fill_null(rows["caption"], "")
        states = zip(
            *(rows[name].to_pylist() for name in ("status", "recipe_id")),
            flags.to_pylist(),
            *(rows[name].to_pylist() for name in ("error_kind", "run_id")),
            pc.is_valid(rows["caption_path"]).to_pylist(),
            strict=True,
        )
        places = range(len(self._state_of), len(self._state_of) + len(rows))
        self._places.update(zip(rows["file"].to_pylist(), places, strict=True))
        self._state_of.extend(map(self._number, map(ItemState._make, states)))
        self._num_bytes.extend(pc.binary_length(captions).to_pylist())
        self._text_hash.extend(map(hash_of, captions.to_pylist()))
        made_us = rows["finished_at"].cast(pa.int64())
        self._made_us.extend(pc.fill_null(made_us, 0).to_pylist())
        self._is_read.extend(bytes(len(rows)))

    def _number(self, state: ItemState) -> int:
        number = self._numbers.setdefault(state, len(self._states))
        if number == len(self._states):
            self._states.append(state)
        return number

    def mark_read(self, file: str) -> None:
        """Record that an item was found in this run's input."""
        self._is_read[self._places[file]] = True

    def is_read(self, file: str) -> bool:
        """Whether the item was found in this run's input."""
        return bool(self._is_read[self._places[file]])

    def clear(self) -> None:
        """Forget everything."""
        self._places.clear()
        for values in (self._state_of, self._num_bytes, self._text_hash, self._made_us):
            del values[:]
        self._is_read.clear()
