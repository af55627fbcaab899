"""What the fork server of a job with fake engines imports: `forkserver_preload` without vLLM."""

from __future__ import annotations

import os

from vllm_caption.engines.executors.lifetime import DRIVER_PID, die_with_parent, lead_session

lead_session()
die_with_parent(int(os.environ[DRIVER_PID]))

import support.fake_engines  # noqa: E402, F401
