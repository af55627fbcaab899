"""``python -m vllm_caption demo``: the whole job on the bundled sample with the bundled model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vllm_caption.checkpoint import read_rows
from vllm_caption.cli import parse_run
from vllm_caption.demo import MODEL_NAME
from vllm_caption.run import run_job

SAMPLE_DIR: Final = Path(__file__).parent / "sample"
DEFAULT_OUTPUT: Final = Path("demo_output")
SHOWN: Final = 8


def run_demo(arguments: Sequence[str]) -> int:
    """Run the job with the demo's inputs; further ``arguments`` are those of `run`."""
    config = parse_run(
        [
            f"--model={MODEL_NAME}",
            f"--jsons={SAMPLE_DIR / 'jsons'}",
            f"--json-detail={SAMPLE_DIR / 'json_detail'}",
            f"--images-root={SAMPLE_DIR / 'raw'}",
            f"--output={DEFAULT_OUTPUT}",
            "--data-parallel-size=2",
            *arguments,
        ]
    )
    outcome = run_job(config)
    print(f"\nSome of the captions in {config.output.resolve()}:")
    captioned = [row for row in read_rows(config.output / "manifest.parquet") if row["caption"]]
    for row in captioned[:: max(1, len(captioned) // SHOWN)][:SHOWN]:
        print(f"  {row['caption_path']}: {row['caption']}")
    return outcome.exit_code
