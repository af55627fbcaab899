"""Imported only by the fork server: imports vLLM once, so that all workers start by fork.

Importing this module has effects on purpose: the server gets a session of its own, so that Ctrl+C
or a SIGTERM to the job's process group reaches only the driver; it dies with the driver; and output
of the import does not overwrite the progress line. If an import fails, every forked process repeats
it and logs the error. No import may leave a thread: it would not be forked.
"""

from __future__ import annotations

import contextlib
import importlib
import os

from vllm_caption.engines.executors.lifetime import DRIVER_PID, die_with_parent, lead_session

lead_session()
die_with_parent(int(os.environ[DRIVER_PID]))
_nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 1)
os.dup2(_nowhere, 2)
os.close(_nowhere)

import vllm_caption.engines.vllm_engine  # noqa: E402, F401

# What every engine and every flag check would otherwise import itself.
for _module in (
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.models.qwen2_5_vl",
    "vllm.v1.engine.core",
    "vllm.v1.worker.cpu_worker",
    "mistral_common.protocol.instruct.validator",
):
    with contextlib.suppress(ImportError):
        importlib.import_module(_module)
