"""The sdist and the wheel: what they contain, and that the commands work from them alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest

from vllm_caption import __version__

ROOT = Path(__file__).parents[1]
INFO = f"vllm_caption-{__version__}.dist-info"
SAMPLE = "vllm_caption/demo/sample/"
NOT_PYTHON = f"""
vllm_caption/py.typed
vllm_caption/_prompts/design-context.md
vllm_caption/_prompts/shape-brief.md
vllm_caption/_prompts/shape-detailed.md
vllm_caption/_prompts/shape-fields.md
vllm_caption/_prompts/shape-zh.md
vllm_caption/commands/report/page/gallery.js
vllm_caption/commands/report/page/page.css
vllm_caption/commands/report/page/page.html.jinja
vllm_caption/demo/model/README.md
vllm_caption/demo/model/chat_template.jinja
vllm_caption/demo/model/config.json
vllm_caption/demo/model/generation_config.json
vllm_caption/demo/model/model.safetensors
vllm_caption/demo/model/processor_config.json
vllm_caption/demo/model/tokenizer.json
vllm_caption/demo/model/tokenizer_config.json
{INFO}/METADATA
{INFO}/RECORD
{INFO}/WHEEL
{INFO}/entry_points.txt
{INFO}/licenses/LICENSE
{INFO}/licenses/{SAMPLE}LICENSES/bootstrap-icons-MIT.txt
{INFO}/licenses/{SAMPLE}LICENSES/fluent-emoji-flat-MIT.txt
"""
"""Each file of the wheel that is neither Python nor of the sample."""


@dataclass(frozen=True)
class Built:
    """The files of a release."""

    sdist: Path
    wheel: Path

    @property
    def wheel_names(self) -> list[str]:
        """The names of its files."""
        return [name for name in zipfile.ZipFile(self.wheel).namelist() if name[-1] != "/"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The sdist of this tree, and the wheel that is built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--out-dir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Built(sdist, wheel)


def uv(*arguments: str | Path) -> None:
    """Without a network where uv's cache, which `make setup` fills, has the build backend."""
    command = [sys.executable, "-m", "uv", "--quiet", "--no-progress"]
    if subprocess.run([*command, "--offline", *arguments], capture_output=True).returncode:
        subprocess.run([*command, *arguments], check=True)


def tree(folder: str, pattern: str = "*") -> set[str]:
    """Files below a folder of the checkout."""
    found = (path for path in (ROOT / folder).rglob(pattern) if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if path.suffix != ".pyc"}


def test_wheel_holds_the_package_and_nothing_of_tests_training_or_benchmarks(built: Built) -> None:
    python = {name for name in built.wheel_names if name.endswith(".py")}
    sample = {name for name in built.wheel_names if name.startswith(SAMPLE)}
    assert python == tree("vllm_caption", "*.py")
    assert sample == tree(SAMPLE)
    assert set(built.wheel_names) - python - sample == set(NOT_PYTHON.split())


def test_sdist_holds_the_sources_of_the_wheel_and_the_docs(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {member.name.split("/", 1)[1] for member in archive if member.isfile()}
    expected = tree("vllm_caption") | tree("prompts") | tree("docs")
    assert names - expected == {
        *("ARCHITECTURE.md", "CHANGELOG.md", "LICENSE", "README.md"),
        *(".gitignore", "PKG-INFO", "pyproject.toml"),
    }
    assert expected <= names


def test_metadata_names_version_license_and_readme_and_no_url(built: Built) -> None:
    metadata = message_from_bytes(zipfile.ZipFile(built.wheel).read(f"{INFO}/METADATA"))
    assert metadata["Name"] == "vllm-caption"
    assert metadata["Version"] == __version__ == "0.1.0"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Author"] == "the vllm_caption authors"
    assert "Typing :: Typed" in metadata.get_all("Classifier", [])
    assert str(metadata.get_payload()).startswith("# vllm_caption\n")
    assert not {"Project-URL", "Home-page", "Download-URL"} & set(metadata)
    assert f"Copyright (c) 2026 {metadata['Author']}" in (ROOT / "LICENSE").read_text("utf-8")


def test_changelog_starts_with_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert versions[0] == __version__


def test_changelog_is_grouped_by_topic_and_short_enough_to_read() -> None:
    release = (ROOT / "CHANGELOG.md").read_text("utf-8").split("\n## ")[1]
    topics = re.split(r"^\*\*.+\*\*$", release, flags=re.M)[1:]
    entries = [len(re.findall(r"^- ", topic, re.M)) for topic in topics]
    assert len(topics) > 1
    assert all(0 < number <= 12 for number in entries), entries


@pytest.mark.engine
def test_installed_wheel_runs_demo_plan_and_report_outside_a_checkout(
    built: Built, tmp_path: Path
) -> None:
    site = tmp_path / "site"
    uv("pip", "install", "--no-deps", "--python", sys.executable, "--target", site, built.wheel)
    alone = {**os.environ, "PYTHONPATH": str(site), "HF_HUB_OFFLINE": "1"}

    def installed(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    found = installed(sys.executable, "-c", "import vllm_caption; print(vllm_caption.__file__)")
    assert Path(found.strip()).is_relative_to(site)
    script = site / "bin" / "vllm-caption"
    sample = site / SAMPLE / "raw"
    planned = installed(script, "plan", "--model=demo", f"--input={sample}", "--output=planned")
    assert "Items      69" in planned
    said = installed(script, "demo", "--data-parallel-size=1")
    assert "Drawn shapes (30 of 30 captions match the truth)" in said
    assert "69 items" in installed(script, "report", "--output=demo_output")
    assert (tmp_path / "demo_output" / "report.html").is_file()
