"""Peak memory and time of preparing each image of a folder, each in a fresh process.

python benchmarks/image_memory.py --make 8000 FOLDER   # writes 64 MP images of many kinds first
python benchmarks/image_memory.py FOLDER
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

MAX_PEAK_MB = 1000
MAX_CPU_S = 5.0
PROBE = """
import re, sys, time
from vllm_caption.config import ImageConfig
from vllm_caption.errors import ItemError
from vllm_caption.images.decode import prepare_image
start = time.process_time()
try:
    prepared = prepare_image(sys.argv[1], sys.argv[2], ImageConfig())
    what = "%d×%d %s" % (*prepared.image.size, prepared.backdrop)
except ItemError as error:
    what = error.kind
# Not getrusage: its peak includes what the parent held when it started this process.
peak = re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read()).group(1)
print(int(peak) * 1024 // 10**6, round(time.process_time() - start, 2), what)
"""


def probe(path: Path) -> tuple[int, float, str]:
    """Peak memory of the whole process in MB, CPU seconds, and the outcome."""
    command = [sys.executable, "-c", PROBE, str(path.parent), path.name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    peak, seconds, what = done.stdout.strip().split(" ", 2)
    return int(peak), float(seconds), what


def write_images(folder: Path, side: int) -> None:
    """One image of each kind that needs much memory in a different way."""
    folder.mkdir(parents=True, exist_ok=True)
    down = Image.linear_gradient("L").resize((side, side))
    across = down.transpose(Image.Transpose.ROTATE_90)
    rgba = Image.merge("RGBA", (down, across, Image.new("L", down.size, 90), down))
    deep = Image.fromarray(np.asarray(down).astype(np.uint16) * np.uint16(257))
    cmyk = rgba.convert("RGB").convert("CMYK")
    rgba.save(folder / "rgba.webp", lossless=True, quality=0, method=0)
    rgba.save(folder / "rgba_lossy.webp", quality=50, method=0)
    more = {"save_all": True, "append_images": [rgba.transpose(Image.Transpose.ROTATE_180)]}
    rgba.save(folder / "animated.webp", lossless=True, quality=0, method=0, **more)
    rgba.save(folder / "animated.png", compress_level=1, **more)
    rgba.save(folder / "rgba.png", compress_level=1)
    rgba.save(folder / "rgba.tif")
    rgba.save(folder / "rgba.avif", speed=10)
    Image.merge("LA", (down, across)).save(folder / "la.png", compress_level=1)
    down.convert("P").save(folder / "palette.png", transparency=bytes(range(256)))
    down.convert("P").save(folder / "palette.gif", transparency=3)
    deep.save(folder / "gray16.png", transparency=257)
    Image.fromarray(np.asarray(down, dtype=np.float32)).save(folder / "float.tif")
    cmyk.save(folder / "cmyk.jpg")
    cmyk.save(folder / "cmyk.tif", compression="tiff_lzw")
    Image.merge("LAB", (down, across, down)).save(folder / "lab.tif")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--make", type=int, metavar="SIDE", help="write square images first")
    args = parser.parse_args()
    if args.make:
        write_images(args.folder, args.make)
    beyond = 0
    for path in sorted(args.folder.iterdir()):
        peak_mb, cpu_s, what = probe(path)
        print(f"{path.name:20}{peak_mb:6} MB{cpu_s:7.2f} s  {what}")
        beyond += peak_mb > MAX_PEAK_MB or cpu_s > MAX_CPU_S
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
