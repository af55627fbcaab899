"""a. The ceiling: a bare engine loop, kept full, images already prepared, writing .txt files."""

from __future__ import annotations

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
    record.ready()
    waiting = list(zip(task.files, images, strict=True))[::-1]
    files: dict[str, str] = {}
    while waiting or files:
        while waiting and len(files) < EngineConfig().window:
            file, image = waiting.pop()
            chat = conversation(task, file, image)
            _, (rendered,) = engine.renderer.render_chat([chat], CHAT, tokenization)
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
