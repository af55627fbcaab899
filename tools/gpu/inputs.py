"""What the steps caption, and with which model."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from tools.gpu.seven_billion import make_seven_billion
from vllm_caption.config import DEFAULT_MODEL

ROOT: Final = Path(__file__).resolve().parents[2]
CORPUS: Final = ROOT / "tests" / "data" / "crello_like"
PER_DOCUMENT: Final = 10


@dataclass(frozen=True, slots=True)
class Input:
    """A folder in the job's format. ``outcomes``: file → `captioned` or `failed`."""

    folder: Path
    outcomes: dict[str, str]

    @property
    def flags(self) -> list[str]:
        """The flags that name it."""
        return [
            f"--jsons={self.folder / 'jsons'}",
            f"--json-detail={self.folder / 'json_detail'}",
            f"--images-root={self.folder / 'raw'}",
        ]

    @property
    def exit_code(self) -> int:
        """The exit code of a correct run: 1 if files are broken."""
        return int("failed" in self.outcomes.values())


def corpus() -> Input:
    """The tests' sample of real shapes, seven of whose files are broken."""
    items = json.loads((CORPUS / "expected.json").read_bytes())["items"]
    return Input(CORPUS, {file: item["outcome"] for file, item in items.items()})


def copies(folder: Path, number: int) -> Input:
    """The good files of `corpus`, ``number`` times, for runs that would otherwise be too short."""
    good = [file for file, outcome in corpus().outcomes.items() if outcome == "captioned"]
    files = [f"copy{copy}/{file}" for copy in range(number) for file in good]
    shutil.rmtree(folder, ignore_errors=True)
    for file in files:
        path = folder / "raw" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CORPUS / "raw" / file.partition("/")[2], path)
    for side in ("jsons", "json_detail"):
        (folder / side).mkdir()
    for first in range(0, len(files), PER_DOCUMENT):
        chunk = files[first : first + PER_DOCUMENT]
        manifest = {"images": [{"file": file} for file in chunk]}
        detail = {"images": [{} for _ in chunk], "types": ["SvgElement"] * len(chunk)}
        for side, content in (("jsons", manifest), ("json_detail", detail)):
            (folder / side / f"design_{first:05}.json").write_text(json.dumps(content))
    return Input(folder, dict.fromkeys(files, "captioned"))


def model_flags(folder: Path) -> tuple[str, ...]:
    """The default model if this machine has its weights, else its shape without weights."""
    try:
        snapshot = Path(snapshot_download(DEFAULT_MODEL, local_files_only=True))
        index = json.loads((snapshot / "model.safetensors.index.json").read_bytes())
        complete = all((snapshot / name).exists() for name in set(index["weight_map"].values()))
    except (LocalEntryNotFoundError, FileNotFoundError):
        complete = False
    if complete:
        return (f"--model={DEFAULT_MODEL}",)
    shutil.rmtree(folder, ignore_errors=True)
    return (f"--model={make_seven_billion(folder)}", "--load-format=dummy")
