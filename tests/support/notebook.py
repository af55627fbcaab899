"""Runs a notebook as its kernel does: cells one after the other in the main thread, in which an
event loop is running, with an output that is not a file.

`python -m support.notebook FILE` prints what the cells print.
"""

from __future__ import annotations

import ast
import asyncio
import io
import json
import sys
import types
from pathlib import Path


async def run_cells(notebook: Path) -> None:
    """Run every code cell in one namespace, which is that of `__main__`."""
    namespace = types.ModuleType("__main__").__dict__
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile("".join(cell["source"]), "<cell>", "exec", flags)
            if (waiting := eval(code, namespace)) is not None:  # a cell with `await`
                await waiting


if __name__ == "__main__":
    terminal, sys.stdout = sys.stdout, io.StringIO()
    try:
        asyncio.run(run_cells(Path(sys.argv[1])))
    finally:
        terminal.write(sys.stdout.getvalue())
