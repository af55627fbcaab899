"""The same work by vLLM alone: the ceiling of a run.

The engine has exactly the arguments that the job gives it, and the same images, prompt and number
of tokens. Images are decoded and requests rendered before the clock starts; then one loop steps the
engine, which holds all requests, until the last answer. Nothing is written.

    python -m tools.gpu.ceiling RESULT.json FLAGS_OF_A_RUN…
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.abstract import Executor

from vllm_caption.captions.prompt import load_prompt, render
from vllm_caption.captions.question import make_question
from vllm_caption.commands.run import parse_run
from vllm_caption.config import RunConfig
from vllm_caption.engines.model_folder import resolve_model
from vllm_caption.engines.vllm_engine import chat_params, check_engine_args, sampling_params
from vllm_caption.errors import ItemError
from vllm_caption.images.decode import prepare_image
from vllm_caption.inputs.documents import longest_item
from vllm_caption.inputs.reader import InputReader
from vllm_caption.items import Item


def conversations(config: RunConfig) -> Iterator[list[dict[str, object]]]:
    """The messages of every item that can be captioned."""
    prompt = load_prompt(config.prompt)
    for item in InputReader(config.input):
        if not isinstance(item, Item):
            continue
        try:
            image = prepare_image(str(config.input.images_root), item.file, config.image).image
        except ItemError:
            continue
        asked = render(prompt, item)
        content = [{"type": "image_pil", "image_pil": image}, {"type": "text", "text": asked.user}]
        user: dict[str, object] = {"role": "user", "content": content}
        yield [{"role": "system", "content": asked.system}, user] if asked.system else [user]


def start(config: RunConfig) -> LLMEngine:
    """The engine of a run."""
    flags = config.engine.vllm_flags(resolve_model(config.engine.model))
    question = make_question(load_prompt(config.prompt), longest_item())
    checked = check_engine_args(flags, config.image, config.sampling, question, on_cpu=False)
    args: AsyncEngineArgs = pickle.loads(checked.engine_args)
    vllm_config = args.create_engine_config(UsageContext.LLM_CLASS)
    return LLMEngine(
        vllm_config=vllm_config,
        executor_class=Executor.get_class(vllm_config),
        log_stats=False,
        usage_context=UsageContext.LLM_CLASS,
        multiprocess_mode=True,
    )


def answer(engine: LLMEngine, requests: list[Any], params: Any) -> int:
    """Step until every request is answered; returns the number of tokens."""
    for number, request in enumerate(requests):
        engine.add_request(str(number), request, params.clone())
    tokens = 0
    while engine.has_unfinished_requests():
        finished = (output for output in engine.step() if output.finished)
        tokens += sum(len(output.outputs[0].token_ids) for output in finished)
    return tokens


def main(result: Path, flags: list[str]) -> None:
    """One engine, one pass."""
    config = parse_run(flags)
    chats = list(conversations(config))
    began_s = time.perf_counter()
    engine = start(config)
    start_s = time.perf_counter() - began_s
    tokenization = engine.renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
    began_s = time.perf_counter()
    options = load_prompt(config.prompt).options
    chat = chat_params(options)
    requests = [engine.renderer.render_chat([c], chat, tokenization)[1][0] for c in chats]
    render_s = time.perf_counter() - began_s
    params = sampling_params(config.sampling, schema=options.schema)
    answer(engine, requests[: 2 * config.engine.max_num_seqs], params)  # warm-up
    began_s = time.perf_counter()
    tokens = answer(engine, requests, params)
    seconds = time.perf_counter() - began_s
    figures = {
        "images": len(requests),
        "start_s": round(start_s, 1),
        "render_ms_per_image": round(1000 * render_s / len(requests), 2),
        "seconds_at_work": round(seconds, 2),
        "images_per_s": round(len(requests) / seconds, 2),
        "tokens_per_s": round(tokens / seconds, 1),
    }
    result.write_text(json.dumps(figures))
    engine.engine_core.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
