"""``python -m vllm_caption demo``: the whole job on the bundled sample with the bundled model.

The sample holds drawn shapes, whose right captions are known, and real icons, of a kind that the
tiny model was not trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from vllm_caption.commands.run import caption, parse_run
from vllm_caption.demo import MODEL_NAME, SAMPLE_DIR
from vllm_caption.engines.hardware import runs_on_cpu
from vllm_caption.store.caption_files import open_captions
from vllm_caption.store.layout import all_parts, caption_name
from vllm_caption.store.naming import naming_of
from vllm_caption.store.reader import read_captions

DEFAULT_OUTPUT: Final = Path("demo_output")
SHOWN: Final = 6


def run_demo(arguments: Sequence[str]) -> int:
    """The command; further ``arguments`` are those of `run`. Returns the exit code."""
    config = parse_run(
        [
            f"--model={MODEL_NAME}",
            f"--jsons={SAMPLE_DIR / 'jsons'}",
            f"--json-detail={SAMPLE_DIR / 'json_detail'}",
            f"--images-root={SAMPLE_DIR / 'raw'}",
            f"--output={DEFAULT_OUTPUT}",
            *(["--data-parallel-size=2"] if runs_on_cpu() else []),
            *arguments,
        ]
    )
    outcome = caption(config)
    labels = json.loads((SAMPLE_DIR / "labels.json").read_text("utf-8"))
    print(f"\nSome of the captions in {config.output.resolve()}\n")
    print("\n".join(compared(config.output, labels, config.prompt)))
    return outcome.exit_code


def compared(root: Path, labels: dict[str, Any], prompt: str) -> Iterator[str]:
    """Lines that show captions next to what is known of their images."""
    naming = naming_of(root)
    files = open_captions(root, naming)
    captions = {file: files.read(file) for file in labels}
    if naming == "none":
        captions |= dict(read_captions(all_parts(root), labels))
    drawn = {f: label["captions"] for f, label in labels.items() if label["source"] == "drawn"}
    icons = {f: label["label"] for f, label in labels.items() if label["source"] != "drawn"}

    def shown(file: str) -> str:
        return file if naming == "none" else caption_name(file, naming)

    if all(prompt in truths for truths in drawn.values()):
        right = sum(captions[file] == truths[prompt] for file, truths in drawn.items())
        yield f"Drawn shapes, each with the right caption below ({right} of {len(drawn)} match):"
    else:
        yield "Drawn shapes:"
    for file, truths in list(drawn.items())[:SHOWN]:
        yield f"  {shown(file)}\n      {captions[file]}"
        if prompt in truths:
            yield f"      {truths[prompt]}"
    yield "Real icons, which the tiny model was not trained on, so it is often wrong:"
    for file, label in list(icons.items())[:SHOWN]:
        yield f"  {shown(file)}\n      {captions[file]}\n      a {label}"
