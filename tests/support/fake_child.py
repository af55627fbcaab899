"""The process of a run that Python code starts, with fake engines: `api.child` for tests.

`FAKE_START` names the function of `fake_engines` that starts an engine.
"""

from __future__ import annotations

import os
from typing import NoReturn

from support import fake_engines
from support.fake_job import use_fakes
from vllm_caption.api import child


def main(*arguments: str) -> NoReturn:
    """As `child.main`."""
    use_fakes(start_engine=getattr(fake_engines, os.environ.get("FAKE_START", "start_fake")))
    child.main(*arguments)
