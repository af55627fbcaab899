"""e. Ray Data LLM, as its documentation shows it, in an environment of its own (`make bench-ray`).

Its image stage fails with vLLM 0.32, so prompt and image are handed over directly; without a GPU
the engine is placed by CPU. The prompt is the model's chat template, filled in once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoProcessor

from benchmarks.throughput.clock import Record
from benchmarks.throughput.outcome import FIRST_STEP, Task
from benchmarks.throughput.questions import messages
from vllm_caption.config import ImageConfig


def run(task: Task, record: Record) -> None:
    """Rows in, rows out, each written as it comes."""
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    first_step = Path(f"{task.output}.first_step")
    os.environ[FIRST_STEP] = str(first_step)
    ray.init(include_dashboard=False, log_to_driver=False, logging_level="error")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=task.model,
            engine_kwargs=_engine_kwargs(task),
            batch_size=task.options["batch"],
            concurrency=1,
            chat_template_stage=False,
            tokenize_stage=False,
            detokenize_stage=False,
            placement_group_config={"bundle_per_worker": {"CPU": 1, "GPU": 0}},
        ),
        preprocess=_Preprocess(task),
        postprocess=_postprocess,
    )
    rows = processor(ray.data.from_items([{"file": file} for file in task.files]))
    for row in rows.iter_rows():
        record.write(row["file"], row["caption"])
    record.ready_at.append(float(first_step.read_text()))  # its first batch waits for the engine
    ray.shutdown()


def _engine_kwargs(task: Task) -> dict[str, Any]:
    image = ImageConfig()
    size = {"shortest_edge": image.min_pixels, "longest_edge": image.max_pixels}
    return {
        **{"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 64 << 20},
        **{"limit_mm_per_prompt": {"image": 1, "video": 0}, "mm_processor_cache_gb": 0},
        **{"enable_prefix_caching": False, "max_model_len": -1},
        "max_num_seqs": task.max_num_seqs,
        "mm_processor_kwargs": {"size": size},
        "worker_cls": "benchmarks.throughput.first_step.FirstStepWorker",
        **task.engine_kwargs,
    }


class _Preprocess:
    """A row of the input → a row for the engine; runs in Ray's workers."""

    def __init__(self, task: Task) -> None:
        chat = messages(task.prompt, "", {"type": "image"})
        processor = AutoProcessor.from_pretrained(task.model)
        self._prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
        self._root = task.images_root
        self._sampling = {
            "temperature": 0.0,
            "max_tokens": task.max_tokens,
            "ignore_eos": task.ignore_eos,
        }

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        image = Image.open(os.path.join(self._root, row["file"]))  # noqa: PTH118
        return {
            "file": row["file"],
            "prompt": self._prompt,
            "multimodal_data": {"image": [image]},
            "sampling_params": self._sampling,
        }


def _postprocess(row: dict[str, Any]) -> dict[str, Any]:
    return {"file": row["file"], "caption": row["generated_text"]}
