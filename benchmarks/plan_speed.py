"""Documents per minute of `plan`, on small documents in a temporary folder.

Each document has eleven elements, six of them shapes, as the templates of the Crello family have
on average; each shape is a separate PNG with transparency of 256 pixels. The plan runs
as a user runs it, in a separate process, including its start-up time.

    python benchmarks/plan_speed.py --documents 5000 --json plan_speed.json
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw

TARGET_DOCUMENTS_PER_MINUTE = 20_000
"""The target without opening images, on two cores."""
TYPES = ["SvgElement"] * 5 + ["ColoredBackground"] + ["TextElement"] * 4 + ["ImageElement"]
NUM_DRAWINGS = 50


def draw(number: int) -> bytes:
    image = Image.new("RGBA", (256, 256))
    box = (10 + number, 20, 120 + 2 * number, 230)
    ImageDraw.Draw(image).ellipse(box, fill=(5 * number, 90, 160, 255), outline="black")
    with tempfile.TemporaryFile() as file:
        image.save(file, "png")
        file.seek(0)
        return file.read()


def make_input(root: Path, documents: int) -> None:
    drawings = [draw(number) for number in range(NUM_DRAWINGS)]
    for side in ("jsons", "json_detail"):
        (root / side).mkdir()
    for number in range(documents):
        files = [f"{number % 256:02x}/{number}_{index}.png" for index in range(len(TYPES))]
        manifest = {"images": [{"file": f} for f in files], "width": 1080, "height": 1080}
        detail = {"images": [{}] * len(files), "types": TYPES, "title": f"Design {number}"}
        (root / "jsons" / f"design_{number:06}.json").write_text(json.dumps(manifest))
        (root / "json_detail" / f"design_{number:06}.json").write_text(json.dumps(detail))
        (root / "raw" / f"{number % 256:02x}").mkdir(parents=True, exist_ok=True)
        for index, file in enumerate(files[:6]):
            (root / "raw" / file).write_bytes(drawings[(number * 6 + index) % NUM_DRAWINGS])


def timed(root: Path, *flags: str) -> float:
    """The seconds that one plan takes."""
    line = [sys.executable, "-m", "vllm_caption", "plan", "--quiet", *flags]
    line += [f"--jsons={root / 'jsons'}", f"--json-detail={root / 'json_detail'}"]
    line += [f"--images-root={root / 'raw'}", f"--output={root / 'out'}"]
    started_s = time.perf_counter()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3, help="the fastest one counts")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_input(Path(folder), args.documents)
        without = min(timed(Path(folder)) for _ in range(args.rounds))
        opened = timed(Path(folder), "--images")
    figures = {
        "documents": args.documents,
        "cores": len(os.sched_getaffinity(0)),
        "documents_per_minute": round(60 * args.documents / without),
        "documents_per_minute_with_images": round(60 * args.documents / opened),
        "images_per_s": round(6 * args.documents / opened),
    }
    print("\n".join(f"{name:34}{value:>10,}" for name, value in figures.items()))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if figures["documents_per_minute"] >= TARGET_DOCUMENTS_PER_MINUTE else 1


if __name__ == "__main__":
    sys.exit(main())
