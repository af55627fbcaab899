"""a. The ceiling: a bare engine loop, kept full, with prepared images, writing .txt files.

With the option `rendered`, requests are rendered before the clock starts, and all queued at once.
"""

from __future__ import annotations

from typing import Any

from PIL.Image import Image
from vllm.renderers import ChatParams

from benchmarks.throughput.clock import Record
from benchmarks.throughput.engines import conversation, sampling_params, start_engine
from benchmarks.throughput.outcome import Task
from vllm_caption.config import EngineConfig, ImageConfig
from vllm_caption.images.decode import prepare_image

CHAT = ChatParams(chat_template_kwargs={"add_generation_prompt": True})


def run(task: Task, record: Record) -> None:
    """Render, add, step, write, in one thread."""
    config = ImageConfig()
    first_engine = task.options.get("engine_first", False)
    engine = start_engine(task) if first_engine else None
    images = [prepare_image(task.images_root, file, config).image for file in task.files]
    engine = engine or start_engine(task)
    params = sampling_params(task)
    tokenization = engine.renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)

    def render(file: str, image: Image) -> Any:
        chat = conversation(task, file, image)
        return engine.renderer.render_chat([chat], CHAT, tokenization)[1][0]

    window = EngineConfig(max_num_seqs=task.max_num_seqs).window
    asked: list[Any] = images
    if task.options.get("rendered"):
        window = len(task.files)
        asked = list(map(render, task.files, images))
    record.ready()
    waiting = list(zip(task.files, asked, strict=True))[::-1]
    files: dict[str, str] = {}
    while waiting or files:
        while waiting and len(files) < window:
            file, given = waiting.pop()
            rendered = given if asked is not images else render(file, given)
            name = str(len(task.files) - len(waiting))
            files[engine.add_request(name, rendered, params.clone())] = file
        for output in engine.step():
            if output.finished:
                record.write(_taken(files, output.request_id), output.outputs[0].text)


def _taken(files: dict[str, str], request_id: str) -> str:
    """The file of an answer; vLLM answers under the name that was given, with or without a tail."""
    known = (
        request_id
        if request_id in files
        else next(name for name in files if name.startswith(f"{request_id}-"))
    )
    return files.pop(known)
