"""The order of imports, and which module may know which library."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "vllm_caption"
LAYERS = (
    {"errors", "messages", "engine_flags", "config", "shards", "storage"},
    {
        *(
            "hardware",
            "model_folder",
            "documents",
            "manifest",
            "prompts",
            "image_files",
            "image_modes",
            "image_png",
            "backdrop",
            "images",
        ),
        *(
            "checks",
            "decisions",
            "dispatcher",
            "twins",
            "caption_files",
            "checkpoint",
            "parts",
            "folders",
            "lock",
            "recipe",
            "place",
            "event_log",
            "gpu",
            "host",
            "monitor_file",
            "pressure",
            "rejections",
            "limits",
            "recent",
            "flag_values",
            "flags",
            "memory_fit",
        ),
        *("sections", "stats"),
    },
    {
        *("earlier", "recorded", "rows", "status", "output", "scan", "progress", "summary"),
        *("monitor", "pilot"),
        "worker",
    },
    {
        "plan",
        "verify",
        "report",
        "merge",
        "json_file",
        "run_state",
        "status_view",
        "status_shards",
    },
    {"engine", "clerk"},
    {"executors"},
    {"reading", "slots"},
    {"driver"},
    {"run"},
    {"cli"},
)
ALLOWED_USERS = {
    "vllm": {"engine"},
    "torch": {"engine"},
    "ray": {"executors"},
    "PIL": {"images", "image_files", "image_modes", "backdrop", "worker", "engine", "report"},
    "pyarrow": {
        *("checkpoint", "earlier", "monitor_file", "parts", "verify", "report"),
        "storage",
    },
    "deflate": {"image_png"},
    "jinja2": {"prompts", "report"},
    "filelock": {"lock"},
    "pynvml": {"hardware", "gpu"},
    "psutil": {"host", "monitor"},
    "tqdm": {"progress", "run_state"},
}


def modules() -> dict[str, Path]:
    """Part of the package → its files; `demo` stands apart, beside the command line."""
    found = {path.stem: path for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    return found | {name: PACKAGE / name for name in ("executors", "plan", "verify", "report")}


def imports(path: Path) -> set[str]:
    """Full names of what a file, or every file of a folder, imports anywhere."""
    files = path.rglob("*.py") if path.is_dir() else [path]
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_its_layer() -> None:
    assert set(modules()) == set().union(*LAYERS)


def test_imports_go_one_way_through_the_layers() -> None:
    level = {name: depth for depth, layer in enumerate(LAYERS) for name in layer}
    for name, path in modules().items():
        used = {i.split(".")[1] for i in imports(path) if i.startswith("vllm_caption.")}
        for other in used - {name, "demo", "__version__"}:
            lazily = name == "cli" or (name, other) == ("executors", "engine")
            assert level[other] <= level[name] or lazily, f"{name} imports {other}"


def test_each_library_is_known_to_the_modules_whose_job_needs_it() -> None:
    for library, allowed in ALLOWED_USERS.items():
        users = {
            n for n, p in modules().items() if library in {i.split(".")[0] for i in imports(p)}
        }
        assert users <= allowed, library


def test_modules_and_functions_stay_small() -> None:
    lengths = {}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        lengths[path] = len(text.splitlines())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                size = node.end_lineno - node.lineno + 1
                assert size <= 40, f"{path.name}: {node.name} has {size} lines"
    assert max(lengths.values()) <= 300, lengths
    assert sorted(lengths.values())[len(lengths) // 2] <= 150
