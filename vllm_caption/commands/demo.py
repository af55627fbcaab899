"""``python -m vllm_caption demo``: the whole job on the bundled sample with the bundled model.

The sample holds drawn shapes, whose right captions are known, and real icons, of a kind that the
tiny model was not trained on.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from vllm_caption.commands.run import caption, make_page, parse_run
from vllm_caption.config import DEFAULT_MODEL
from vllm_caption.demo import MODEL_NAME, SAMPLE_DIR
from vllm_caption.engine_flags import is_value
from vllm_caption.engines.hardware import runs_on_cpu
from vllm_caption.errors import EXIT_OK, EXIT_SOME_FAILED, UsageError
from vllm_caption.flags import Parser, dashed, parse_path
from vllm_caption.process import say
from vllm_caption.store.caption_files import open_captions
from vllm_caption.store.layout import all_parts, caption_name
from vllm_caption.store.naming import naming_of
from vllm_caption.store.reader import read_captions

DEFAULT_OUTPUT: Final = Path("demo_output")
SHOWN: Final = 3
"""Of each kind; the page shows all."""


def run_demo(arguments: Sequence[str]) -> int:
    """The command; further ``arguments`` are those of `run`. Returns the exit code."""
    options, of_run = _parser().parse_known_args(arguments)
    _refuse_input(arguments)
    config = parse_run(
        [
            f"--model={MODEL_NAME}",
            f"--jsons={SAMPLE_DIR / 'jsons'}",
            f"--json-detail={SAMPLE_DIR / 'json_detail'}",
            f"--images-root={SAMPLE_DIR / 'raw'}",
            f"--output={options.output}",
            *(["--data-parallel-size=2"] if runs_on_cpu() else []),
            *of_run,
        ]
    )
    outcome = caption(config)
    if outcome.exit_code in (EXIT_OK, EXIT_SOME_FAILED):
        labels = json.loads((SAMPLE_DIR / "labels.json").read_text("utf-8"))
        lines = [f"\nSome of the captions in {config.output.resolve()}\n"]
        lines += compared(config.output, labels, config.prompt)
        if not outcome.pilot:  # which has made its page
            lines.append(f"\n{make_page(config.output.absolute())}")
        lines += what_next(config.output, config.prompt)
        say("\n".join(lines), sys.stdout)
    return outcome.exit_code


def _refuse_input(arguments: Sequence[str]) -> None:
    """Raise UsageError for images of the user: the demo has its own."""
    flags = (dashed(word.partition("=")[0]) for word in arguments)
    named = next((flag for flag in flags if flag == "--input"), None)
    if arguments and is_value(arguments[0]):
        named = arguments[0]
    if named is not None:
        yours = f"python -m vllm_caption IMAGES --model {MODEL_NAME}"
        raise UsageError(named, None, f"the demo has its own images; for yours: {yours}")


def _parser() -> Parser:
    parser = Parser(
        prog="vllm-caption demo",
        usage="%(prog)s [FLAG ...]",
        description="Caption the bundled sample, 30 drawn shapes and 39 icons, with the bundled"
        " tiny model, and make the page that shows them all. Needs no GPU and no download.",
        epilog="every flag of a run except --input is accepted, such as --prompt shape-detailed."
        " exit codes are those of a run.",
    )
    text = "folder of captions and of the page"
    parser.add_argument("--output", type=parse_path, default=DEFAULT_OUTPUT, help=text)
    return parser


def what_next(output: Path, prompt: str) -> Iterator[str]:
    """Lines that show what to try after the demo, and the commands for it."""
    other = "shape-zh" if prompt == "shape-detailed" else "shape-detailed"
    folder, second = (shlex.quote(str(path)) for path in (output, f"{output}-{other}"))
    yield "\nTry next:"
    yield "  open that page in a browser: every image with its caption, charts, search"
    yield "  another prompt, then both side by side"
    yield f"      python -m vllm_caption demo --prompt {other} --output {second}"
    yield f"      python -m vllm_caption report {folder} {second}"
    yield f"  your own images, with {DEFAULT_MODEL} (doctor: would it start here?)"
    yield "      python -m vllm_caption doctor IMAGES --output captions"
    yield "      python -m vllm_caption IMAGES --output captions"


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
        yield f"Drawn shapes ({right} of {len(drawn)} captions match the truth):"
    else:
        yield "Drawn shapes:"
    for file, truths in list(drawn.items())[:SHOWN]:
        yield f"  {shown(file)}\n      model: {captions[file]}"
        if prompt in truths:
            yield f"      truth: {truths[prompt]}"
    yield "Real icons (the tiny model guesses: it knows no icons):"
    for file, label in list(icons.items())[:SHOWN]:
        yield f"  {shown(file)}\n      model: {captions[file]}\n      truth: {label}"
