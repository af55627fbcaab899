"""Runs the Python code on standard input; runs that it starts have fake engines."""

from __future__ import annotations

import sys

from vllm_caption.api import run

if __name__ == "__main__":
    run.CHILD = "support.fake_child"  # type: ignore[misc]
    exec(compile(sys.stdin.read(), "<stdin>", "exec"), {"__name__": "__main__"})
