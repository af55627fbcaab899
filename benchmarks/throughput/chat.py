"""c and d. `LLM.chat` over the whole list, or in chunks with a write after each.

Images are opened lazily (vLLM decodes each when its turn comes: its best case) or decoded before
the call, as most scripts do with `.convert("RGB")` or a dataset of images; or `ready`, decoded
before the clock starts.
"""

from __future__ import annotations

from PIL import Image

from benchmarks.throughput.clock import Record
from benchmarks.throughput.engines import conversation, sampling_params, start_llm
from benchmarks.throughput.outcome import Task
from vllm_caption.config import ImageConfig
from vllm_caption.images.decode import prepare_image


def run(task: Task, record: Record) -> None:
    """One call per chunk."""
    llm = start_llm(task)
    is_ready = task.options["images"] == "ready"
    ready = {file: _image(task, file) for file in task.files} if is_ready else {}
    record.ready()
    chunk = task.options.get("chunk") or len(task.files)
    for first in range(0, len(task.files), chunk):
        files = task.files[first : first + chunk]
        chats = [conversation(task, file, ready.get(file) or _image(task, file)) for file in files]
        outputs = llm.chat(chats, sampling_params(task), use_tqdm=False)
        for file, output in zip(files, outputs, strict=True):
            record.write(file, output.outputs[0].text)


def _image(task: Task, file: str) -> Image.Image:
    if task.options["images"] == "lazy":
        return Image.open(f"{task.images_root}/{file}")
    return prepare_image(task.images_root, file, ImageConfig()).image
