"""The order of the packages, and which module may know which library."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vllm_caption"
BASE = (
    "cost",
    "errors",
    "messages",
    "items",
    "formatting",
    "config",
    "engine_flags",
    "flags",
    "process",
)
ORDER = (
    BASE,
    ("images", "captions", "demo"),
    ("inputs",),
    ("scheduling",),
    ("store",),
    ("monitoring",),
    ("engines",),
    ("driver",),
    ("job",),
    ("commands",),
    ("cli", "api"),
)
"""Each line may import the lines above it, never its own or one below; BASE is in itself ordered
by the test of cycles."""
USERS = {
    "vllm": {"engines.vllm_engine"},
    "torch": {"engines.vllm_engine"},
    "ray": {"engines.executors.ray"},
    "deflate": {"images.png"},
    "pyspng": {"images.png"},
    "jsonschema": {"captions.fields"},
    "jinja2": {"captions.prompt", "commands.report"},
    "markupsafe": {"commands.report"},
    "numpy": {"commands.report", "images", "store"},
    "PIL": {
        "commands.report.thumbnails",
        "engines.decoders",
        "engines.vllm_engine",
        "engines.worker",
        "images",
    },
    "psutil": {"monitoring"},
    "pyarrow": {
        "api",
        "commands.export",
        "commands.report",
        "images.containers",
        "images.object_store",
        "inputs",
        "monitoring.samples",
        "store",
    },
    "huggingface_hub": {"engines.model_folder"},
    "pynvml": {"monitoring.gpu_devices", "monitoring.gpus"},
    "rich": {"commands.status.layout", "commands.status.screen"},
    "tqdm": {"monitoring.progress"},
    "yaml": {"captions.prompt"},
}
"""Library → the modules, or whole packages, that may import it."""
COMMANDS = (
    "run",
    "doctor",
    "plan",
    "tune",
    "status",
    "verify",
    "report",
    "merge",
    "export",
    "demo",
)
HEAVY = ("vllm", "torch", "transformers", "ray")
MAX_MODULES = 13


def modules() -> dict[str, Path]:
    """Dotted name below the package → its file."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def project_imports() -> dict[str, set[str]]:
    """Module → the modules of the project that it imports."""
    known = modules()
    found: dict[str, set[str]] = {name: set() for name in known}
    for name, path in known.items():
        for imported in imports(path):
            if imported.startswith("vllm_caption."):
                target = imported.removeprefix("vllm_caption.")
                found[name].add(target if target in known else target.rpartition(".")[0])
    return found


def part(module: str) -> str:
    """The package, or the module at the top, that a module belongs to."""
    return module.partition(".")[0]


def test_every_part_of_the_package_has_its_place_in_the_order() -> None:
    listed = [name for line in ORDER for name in line]
    assert len(listed) == len(set(listed))
    assert {part(name) for name in modules()} - {"", "__main__"} == set(listed)


def test_imports_between_packages_follow_the_order() -> None:
    line_of = {name: number for number, line in enumerate(ORDER) for name in line}
    wrong = [
        f"{module} imports {target}: move what it needs to a package above, or hand it in"
        for module, targets in project_imports().items()
        for target in targets
        if part(module) not in ("", "__main__") and part(target) and part(target) != part(module)
        if not {part(module), part(target)} <= set(BASE)
        if not line_of[part(target)] < line_of[part(module)]
    ]
    assert wrong == []


def test_no_two_modules_import_each_other_not_even_through_a_third() -> None:
    graph = project_imports()
    graph[""] = set()  # the package imports its public names on use
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join((*way[way.index(module) :], module))
        if module not in done:
            for target in graph.get(module, ()):
                visit(target, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_only_flags_job_and_commands_see_all_settings_of_a_run() -> None:
    users = {
        part(name)
        for name, path in modules().items()
        if "vllm_caption.config.RunConfig" in imports(path)
    }
    assert users <= {"flags", "job", "commands"}, "hand a part its section, or single values"


@pytest.mark.parametrize("library", USERS)
def test_a_library_is_known_only_to_the_modules_whose_job_needs_it(library: str) -> None:
    users = {
        name
        for name, path in modules().items()
        if library in {imported.partition(".")[0] for imported in imports(path)}
    }
    allowed = USERS[library]
    wrong = {name for name in users if not any(f"{name}.".startswith(f"{a}.") for a in allowed)}
    assert wrong == set(), f"{library} may be imported by {', '.join(sorted(allowed))} alone"


def test_no_folder_holds_more_modules_than_a_reader_takes_in_at_a_glance() -> None:
    folders = Counter(path.parent for path in PACKAGE.rglob("*.py") if path.stem != "__init__")
    crowded = {str(f.relative_to(PACKAGE)): n for f, n in folders.items() if n > MAX_MODULES}
    assert crowded == {}


def test_architecture_says_what_every_package_is_for() -> None:
    text = (PACKAGE.parent / "ARCHITECTURE.md").read_text("utf-8")
    packages = {path.parent.name for path in PACKAGE.rglob("__init__.py")} - {PACKAGE.name}
    assert {name for name in packages if f"`{name}/`" not in text} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_needs_no_heavy_import(command: str) -> None:
    code = (
        "import sys\n"
        "from vllm_caption.cli import main\n"
        f"try: main([{command!r}, '--help'])\n"
        "except SystemExit: pass\n"
        f"print(*set({HEAVY!r}) & sys.modules.keys(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--output" in done.stdout
    assert done.stderr.split() == []


def test_no_test_file_imports_vllm_before_a_test_runs() -> None:
    """Every process that runs tests reads every test file, and vLLM takes 15 s of a core."""
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                found = ast.unparse(node)
                heavy = re.match(r"(import|from) (vllm|ray)\b", found) or "vllm_engine" in found
                assert not heavy, f"{path}: {found}"


def test_first_run_into_a_folder_opens_it_without_importing_pandas(tmp_path: Path) -> None:
    """As pyarrow does when it first makes a table, which takes a third of a run's imports."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "import vllm_caption.job\n"
        "from vllm_caption.store.output import Output\n"
        "assert not Output(Path(sys.argv[1]), 10).item_states()\n"
        "print(*{'pandas'} & sys.modules.keys())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == []
