"""Imported by the fork server alone: import vLLM once, so that N workers start by fork.

Importing has effects on purpose: the server gets a session of its own, so that Ctrl+C or a
SIGTERM to the job's process group leaves the drain to the driver; it dies with the driver; and
what the import prints does not run over the progress line. A failing import is repeated, and
logged, by every process that is forked.
"""

from __future__ import annotations

import os

from vllm_caption.executors.lifetime import DRIVER_PID, die_with_parent, lead_session

lead_session()
die_with_parent(int(os.environ[DRIVER_PID]))
_nowhere = os.open(os.devnull, os.O_WRONLY)
os.dup2(_nowhere, 1)
os.dup2(_nowhere, 2)
os.close(_nowhere)

import vllm_caption.engine  # noqa: E402, F401
