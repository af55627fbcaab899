"""The settings of one run, one section per part of the job, with all defaults.

Settings are parsed once and frozen. A part receives its section, or single values; only the
commands and `job` see all of them. Fields are named after their flags (``--max-num-seqs`` is
``max_num_seqs``); flags that vLLM also has keep vLLM's name and meaning.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final, Literal
from unicodedata import normalize
from zlib import crc32

from vllm_caption.cost import Billing
from vllm_caption.engine_flags import given_flags, gpus_per_engine
from vllm_caption.errors import UsageError
from vllm_caption.formatting import closest, encodable_name, printable

DEFAULT_MODEL: Final = "Qwen/Qwen2.5-VL-7B-Instruct"
WINDOW_FACTOR: Final = 2
"""Items that a worker holds (loading, rendering, generating) per sequence that it generates at a
time: fewer starve vLLM's scheduler, more lengthen the tail and lose more when a worker dies."""
REMOTE_WINDOW_FACTOR: Final = 4
"""The same for images fetched over a network, where as many again are in transit."""

ExecutorName = Literal["local", "ray"]
CaptionName = Literal["file", "stem", "none"]
"""How the .txt of x.png is named: x.png.txt, or x.txt; with "none", no .txt is written."""
Redo = Literal["stale", "failed", "flagged", "all"]

_SHARD: Final = re.compile(r"(\d+)/(\d+)")
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*://")


def is_remote(images_root: str | Path) -> bool:
    """Whether an images root is a URI rather than a folder."""
    return isinstance(images_root, str) and _URI.match(images_root) is not None


MAX_LISTED: Final = 6
MAX_ENTRIES: Final = 1000
"""How many names in a folder are looked at for a hint."""
TABLE_SUFFIXES: Final = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")


def is_folder(path: Path) -> bool:
    """Whether this is a folder; False for one below a folder that this user may not enter, where
    `Path.is_dir` raises."""
    return os.path.isdir(path)  # noqa: PTH112


def files_in(folder: Path, suffix: str) -> list[Path]:
    """The files with this suffix directly in a folder, sorted by name: the parts of one input. Next
    to a folder with the suffix, such as the manifest of an output, they are no input."""
    found = sorted(folder.glob(f"[!.]*{suffix}"))
    return [] if any(map(is_folder, found)) else found


def is_table(path: Path) -> bool:
    """Whether an input is a table rather than a folder of images: a file by its suffix, a folder if
    it has Parquet files directly in it."""
    if is_folder(path):
        return bool(files_in(path, ".parquet"))
    return path.suffix.lower() in TABLE_SUFFIXES


def is_archive(path: Path) -> bool:
    """Whether an input is a tar, or a folder with tars directly in it."""
    return bool(files_in(path, ".tar")) if is_folder(path) else path.suffix.lower() == ".tar"


def check_folder(flag: str, path: Path, role: str) -> None:
    """Raise UsageError unless ``path`` is a readable folder; ``role``: what it is for."""
    try:
        with os.scandir(path):
            return
    except FileNotFoundError:
        problem = absence(path)
    except NotADirectoryError:
        problem = "is not a folder"
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    raise UsageError(flag, path, f"{problem}; name {role}")


def absence(path: Path) -> str:
    """That nothing has this path, and what was meant by it or is there instead."""
    above = next(filter(is_folder, path.parents), None)
    if above is None:
        return "cannot be found (the working folder cannot be entered)"
    where = "this folder" if above == Path() else _shown(os.fspath(above))
    missing, *below = path.relative_to(above).parts
    try:
        names = _names_in(above)
    except OSError:
        return f"cannot be found ({where} cannot be read)"
    there = [name for name in names if _exists(above.joinpath(name, *below))]
    if (meant := closest(missing, there)) is not None:
        return f"does not exist (did you mean {_shown(os.fspath(above.joinpath(meant, *below)))}?)"
    return f"does not exist ({where} holds {held_in(above)})"


def held_in(folder: Path) -> str:
    """The first names in a folder, for a message."""
    try:
        names = list(map(_shown, _names_in(folder)))
    except OSError:
        names = []
    return f"{', '.join(names[:MAX_LISTED])}{' …' if len(names) > MAX_LISTED else ''}" or "nothing"


def _names_in(folder: Path) -> list[str]:
    """Those that are not hidden, sorted; some of them, where there are many. Raises OSError."""
    with os.scandir(folder) as entries:
        names = (entry.name for entry in entries if not entry.name.startswith("."))
        return sorted(islice(names, MAX_ENTRIES))


def _exists(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 (never raises)


def _shown(name: str) -> str:
    return printable(encodable_name(name))


def _without_case(name: str) -> str:
    """One spelling for all names that some file system treats as equal: Unicode's canonical
    caseless matching."""
    if name.isascii():
        return name.lower()
    return normalize("NFD", normalize("NFD", name).casefold())


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """One of ``count`` parts of the items, numbered from 1; each is captioned by a separate run.

    A shard writes its captions where a run without shards would, and keeps everything else
    (manifest, journal, lock, status, logs) in a separate folder until `merge` makes one manifest.
    Names whose captions are one file on some file system are in the same shard, so that one run
    decides whose it is.
    """

    index: int
    count: int
    by_stem: bool = field(default=False, compare=False)
    """Names that differ only in their ending are in the same shard: their captions may collide."""

    @staticmethod
    def parse(text: str) -> Shard:
        """Parse `3/8`. Raises ValueError."""
        found = _SHARD.fullmatch(text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"{text} is not I/N with I from 1 to N, such as 3/8")
        return Shard(int(found[1]), int(found[2]))

    def takes(self, name: str) -> bool:
        """Whether the item with this name is in this shard. Decided by the CRC-32 of the name,
        without case and with accents decomposed: a name is in the same shard on every machine,
        whatever else is in the input."""
        if self.by_stem:
            name = os.path.splitext(name)[0]  # noqa: PTH122 (called a million times)
        key = _without_case(name).encode(errors="surrogatepass")
        return crc32(key) % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


ALL_COLUMNS: Final = "*"
"""Stands for every column of a table."""


@dataclass(frozen=True, slots=True)
class InputConfig:
    """Where the elements and images are, and which are captioned.

    ``input``: a folder of images or a table; None for designs. ``columns``: the columns of a
    table that the prompt uses. ``without``: folders not searched for images. ``images_root``: a
    folder, or a URI as a string. ``only``: caption these files and no others (a pilot).
    ``documents``: read only the designs with these names. ``patterns``: caption only files with
    one of these names, or that match one of them as a glob.
    """

    jsons: Path = Path("jsons")
    json_detail: Path = Path("json_detail")
    images_root: Path | str = Path("/root/dataset/raw")
    skip_types: tuple[str, ...] = ("TextElement", "ImageElement")
    limit: int | None = None
    only: frozenset[str] | None = None
    documents: frozenset[str] | None = None
    patterns: tuple[str, ...] = ()
    shard: Shard | None = None
    input: Path | None = None
    image_column: str | None = None
    id_column: str | None = None
    type_column: str | None = None
    columns: tuple[str, ...] = ()
    without: tuple[Path, ...] = ()

    def named(self, naming: CaptionName) -> InputConfig:
        """The same input for captions named this way: those that may collide share a shard."""
        if self.shard is None:
            return self
        return replace(self, shard=replace(self.shard, by_stem=naming == "stem"))


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How a file becomes pixels; all sizes are in pixels. The model's processor scales an image to
    between ``min_pixels`` and ``max_pixels`` (28 × 28 pixels make one token); a file with more than
    ``max_image_pixels`` is not decoded."""

    max_side: int = 1024
    min_pixels: int = 28 * 28 * 8
    max_pixels: int = 28 * 28 * 64
    max_image_pixels: int = 64_000_000

    def unbounded(self) -> ImageConfig:
        """The same for a model whose processor has no pixel bounds: only ``max_side`` applies."""
        return replace(self, max_pixels=self.max_side**2)


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """vLLM's sampling parameters, under vLLM's names; greedy by default."""

    max_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The model and its engines. ``engine_args`` are vLLM's flags, passed on unchanged."""

    model: str = DEFAULT_MODEL
    data_parallel_size: int = 1
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    max_num_seqs: int = 8
    engine_args: tuple[str, ...] = ()
    max_engine_restarts: int = 3
    stall_timeout_s: float = 300.0
    item_timeout_s: float = 120.0
    start_timeout_s: float = 1800.0
    drain_timeout_s: float = 120.0
    prepare_threads: int = 3
    window_factor: int = WINDOW_FACTOR
    executor: ExecutorName = "local"
    ray_address: str = "auto"

    @property
    def window(self) -> int:
        """Items that one worker may hold at a time."""
        return self.window_factor * self.max_num_seqs

    @property
    def gpus_per_engine(self) -> int:
        """GPUs that one engine uses."""
        return gpus_per_engine((*self._parallel_flags, *self.engine_args))

    @property
    def _parallel_flags(self) -> tuple[str, ...]:
        return (
            f"--tensor-parallel-size={self.tensor_parallel_size}",
            f"--pipeline-parallel-size={self.pipeline_parallel_size}",
        )

    def vllm_flags(self, model: str) -> tuple[str, ...]:
        """The command line of one engine, in vLLM's flags; ``model`` is the resolved name."""
        flags = [
            f"--model={model}",
            f"--max-num-seqs={self.max_num_seqs}",
            *self._parallel_flags,
        ]
        if "max_model_len" not in given_flags(self.engine_args):
            # As much as fits in memory: captions need little.
            flags.append("--max-model-len=auto")
        return (*flags, *self.engine_args)


@dataclass(frozen=True, slots=True)
class ResumeConfig:
    """Which items that were tried before are captioned again, besides the failed ones.

    ``redo_kinds``: only those that failed with one of these kinds or have one of these flags;
    ``redo_files``: only the items with these names. ``overwrite_edited``: also replace captions
    that a person wrote.
    """

    redo: Redo | None = None
    redo_kinds: tuple[str, ...] = ()
    redo_files: tuple[str, ...] = ()
    overwrite_edited: bool = False

    @property
    def is_redo(self) -> bool:
        """Whether the user chose what is captioned again."""
        return bool(self.redo or self.redo_kinds or self.redo_files)


@dataclass(frozen=True, slots=True)
class RunConfig:
    """All settings of one run. ``caption_name``: None keeps the naming of the output folder;
    ``arguments``: the command line that the settings were parsed from."""

    input: InputConfig = field(default_factory=InputConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    resume: ResumeConfig = field(default_factory=ResumeConfig)
    output: Path = Path("shape_descriptions")
    caption_name: CaptionName | None = None
    prompt: str = "shape-brief"
    checks: bool = True
    dedup: bool = True
    max_retries: int = 3
    max_same_errors: int = 64
    checkpoint_interval: int = 1000
    quiet: bool = False
    log_file: Path | None = None
    log_json: bool = False
    pilot: int | None = None
    gpu_hour_price: float | None = None
    arguments: tuple[str, ...] = field(default=(), compare=False)

    @property
    def billing(self) -> Billing | None:
        """What the GPUs cost; None if no price is given."""
        if self.gpu_hour_price is None:
            return None
        num_gpus = self.engine.data_parallel_size * self.engine.gpus_per_engine
        return Billing(self.gpu_hour_price, num_gpus)

    def with_columns(self, columns: tuple[str, ...]) -> RunConfig:
        """The same settings for a prompt that uses these columns of a table."""
        return replace(self, input=replace(self.input, columns=columns))
