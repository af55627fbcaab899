"""The lists of images: real flat shapes in the job's input format, and the same names for others.

They are brought to 256 to 1024 pixels on the longer side, as design elements have. Taken are those
that every contestant sees alike: vLLM's own flattening on white gives exactly our pixels, and no
two have the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from PIL import Image

from vllm_caption.config import ImageConfig
from vllm_caption.errors import ItemError
from vllm_caption.images.decode import prepare_image

ROOT = Path(__file__).resolve().parents[2]
PER_DOCUMENT = 10
SIDES = (256, 384, 512, 768, 1024)


def corpus() -> Path:
    """The folder of real shapes: the tests' own, or $BENCHMARK_IMAGES, a folder of PNG files."""
    folder = Path(os.environ.get("BENCHMARK_IMAGES", ROOT / "tests/data/crello_like/raw"))
    if not folder.is_dir():
        raise SystemExit(f"BENCHMARK_IMAGES {folder} is not a folder")
    return folder


def sized_images(source: Path, folder: Path) -> Path:
    """The corpus in the sizes of design elements; made once."""
    if folder.is_dir():
        return folder
    making = folder.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    paths = sorted(path for path in source.rglob("*.png") if path.is_file())
    random.Random(0).shuffle(paths)
    for number, path in enumerate(paths):
        with suppress(OSError):  # the corpus has damaged files too
            image = Image.open(path)
            mode = "RGBA" if image.has_transparency_data else "RGB"
            scale = SIDES[number % len(SIDES)] / max(image.size)
            size = [max(1, round(side * scale)) for side in image.size]
            image.convert(mode).resize((size[0], size[1])).save(making / f"{number:04}.png")
    return making.rename(folder)


def usable_images(root: Path) -> Iterator[Path]:
    """Distinct images that look the same to every contestant, in a fixed mixed order."""
    seen = set()
    for path in sorted(root.rglob("*.png")):
        try:
            prepared = prepare_image(str(root), str(path.relative_to(root)), ImageConfig())
        except ItemError:
            continue
        if prepared.sha256 in seen or prepared.image.tobytes() != _as_vllm(path).tobytes():
            continue
        seen.add(prepared.sha256)
        yield path


def _as_vllm(path: Path) -> Image.Image:
    """vLLM's way to RGB (vllm/multimodal/image.py): alpha on white."""
    image = Image.open(path)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    flat = Image.new("RGB", rgba.size, (255, 255, 255))
    flat.paste(rgba, mask=rgba.getchannel("A"))
    return flat


class Input:
    """One list, on disk."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder = folder
        self.files = files

    @property
    def images_root(self) -> str:
        """The folder that names are relative to."""
        return str(self.folder / "raw")


def write_input(folder: Path, images: Iterable[Path], lengths: list[int], copies: int = 1) -> Input:
    """Images, manifests and details; ``lengths`` of the answers stand in the names, in turn."""
    shutil.rmtree(folder, ignore_errors=True)
    sources = list(images) * copies
    files = []
    for number, source in enumerate(sources):
        name = hashlib.sha256(source.name.encode()).hexdigest()[:6]
        length = f"-len{lengths[number % len(lengths)]}" if lengths else ""
        files.append(f"d{number // PER_DOCUMENT:03}/{number:04}-{name}{length}.png")
        path = folder / "raw" / files[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    for side in ("jsons", "json_detail"):
        (folder / side).mkdir()
    rest = iter(files)
    for document, chunk in enumerate(iter(lambda: list(islice(rest, PER_DOCUMENT)), [])):
        manifest = {"images": [{"file": file} for file in chunk]}
        detail = {"images": [{} for _ in chunk], "types": ["SvgElement"] * len(chunk)}
        for side, content in (("jsons", manifest), ("json_detail", detail)):
            (folder / side / f"design_{document:04}.json").write_text(json.dumps(content))
    return Input(folder, files)


def varied_lengths(count: int) -> list[int]:
    """Answers of 8 to 96 tokens, most of them short, as captions are."""
    chance = random.Random(1)
    return [min(96, max(8, round(chance.lognormvariate(3.3, 0.6)))) for _ in range(count)]


def skewed_lengths(count: int) -> list[int]:
    """The second half of the list takes four times as long."""
    return [16] * (count // 2) + [64] * (count - count // 2)
