"""Imported by the fork server alone: import vLLM once, so that N workers start by fork.

Importing has effects on purpose: the server gets a session of its own, so that Ctrl+C or a
SIGTERM to the job's process group leaves the drain to the driver; it dies with the driver; and
what the import prints does not run over the progress line. A failing import is repeated, and
logged, by every process that is forked. No import may leave a thread: it would not be forked.
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
