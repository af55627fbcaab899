"""`doctor` says whether a run would start here, and what to do if not."""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.job import FAKE, QUICK, run, run_here
from support.pretend_gpus import PretendGpus, needs_compiler

from vllm_caption.commands import doctor
from vllm_caption.demo import MODEL_DIR, SAMPLE_DIR
from vllm_caption.engines import hardware, machine_check, model_folder
from vllm_caption.engines.hardware import INSTALL_HINT
from vllm_caption.engines.weights import Weights, num_attention_heads
from vllm_caption.errors import UsageError
from vllm_caption.store.lock import OutputLock

INPUT = f"--input={SAMPLE_DIR / 'raw'}"


def lines(*arguments: str) -> tuple[int, list[str]]:
    """The exit code and the lines; without another input, of a run over the bundled sample."""
    result = run_here("doctor", INPUT, *arguments)
    assert result.stderr == ""
    return result.exit_code, result.stdout.splitlines()


def the_problem(*arguments: str) -> str:
    """The one line with a problem."""
    exit_code, said = lines(*arguments)
    assert exit_code == 2
    (problem,) = [line for line in said if line.startswith("PROBLEM")]
    assert said[-1] == "The run cannot start yet: 1 problem above."
    return problem


def test_machine_where_a_run_would_start_is_ready_and_nothing_is_written(tmp_path: Path) -> None:
    exit_code, said = lines("--model=demo", f"--output={tmp_path / 'out'}")
    assert exit_code == 0
    assert said[-1] == "Ready to run."
    assert said[0].startswith("ok       vLLM: 0.")
    assert f"ok       --model demo: in {MODEL_DIR}, weights of 3.6 MiB" in said
    assert list(tmp_path.iterdir()) == []


def test_flags_of_vllm_are_accepted_and_a_misspelt_command_line_is_refused(tmp_path: Path) -> None:
    flags = ["--model=demo", f"--output={tmp_path}", "--gpu-memory-utilization=0.8"]
    exit_code, said = lines(*flags)
    ready = "Ready to run, if vLLM accepts its flags: it checks them when the run starts."
    assert (exit_code, said[-1]) == (0, ready)
    assert run_here("doctor", "demo").exit_code == 2


def test_model_that_was_only_partly_downloaded_is_a_problem(tmp_path: Path) -> None:
    model = shutil.copytree(MODEL_DIR, tmp_path / "model")
    with (model / "model.safetensors").open("r+b") as file:
        file.truncate(1000000)
    told = the_problem(f"--model={model}", f"--output={tmp_path / 'out'}")
    assert told.startswith(
        f"PROBLEM  --model {model}/model.safetensors: is cut short: 1,000,000 of"
    )


def test_attention_heads_that_gpus_cannot_share_are_a_problem_with_numbers_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [f"--output={tmp_path / 'out'}", "--tensor-parallel-size=3", "--data-parallel-size=1"]
    expected = (
        "PROBLEM  --tensor-parallel-size 3: the model's 4 attention heads cannot be divided"
        " evenly among 3 GPUs; use one of 1, 2, 4"
    )
    assert the_problem("--model=demo", *flags) == expected
    cached(tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    assert the_problem("--model=someone/shapes", *flags) == expected
    assert lines("--model=demo", *flags, "--hf-overrides={}")[0] == 0
    assert lines("--model=demo", *flags, "--tensor-parallel-size=2")[0] == 0


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"num_attention_heads": 28, "vision_config": {"num_attention_heads": 16}}, 28),
        ({"num_attention_heads": 28, "text_config": {"num_attention_heads": 12}}, 12),
        ({"num_attention_heads": 28, "text_config": {}}, None),
        ({"text_config": "x"}, None),
        ({"num_attention_heads": "many"}, None),
        ([], None),
    ],
)
def test_attention_heads_are_those_of_the_language_model_or_unknown(
    tmp_path: Path, config: object, heads: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert num_attention_heads(tmp_path) == heads


def test_a_model_name_that_is_not_available_offline_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    told = the_problem("--model=no-such/model", f"--output={tmp_path}")
    assert told.startswith("PROBLEM  --model no-such/model: ")
    assert "HF_HUB_OFFLINE" in told


def silent(*arguments: object) -> Weights:
    """A Hub that does not respond."""
    raise OSError("no route to host")


def cached(folder: Path) -> Path:
    """A cache of the Hub in ``folder`` with the bundled model as someone/shapes; its files."""
    repository = folder / "models--someone--shapes"
    snapshot = shutil.copytree(MODEL_DIR, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    return snapshot


def test_a_model_in_the_hubs_cache_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cached(tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    exit_code, said = lines("--model=someone/shapes", f"--output={tmp_path / 'out'}")
    assert exit_code == 0
    expected = (
        f"ok       --model someone/shapes: in the Hub's cache, {snapshot}, weights of 3.6 MiB"
    )
    assert expected in said


def test_a_partial_cache_is_completed_by_a_run_but_not_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cached(tmp_path) / "model.safetensors").unlink()
    flags = ["--model=someone/shapes", f"--output={tmp_path}"]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(machine_check, "ask_hub", lambda *_: Weights({"BF16": 2**30}))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    exit_code, said = lines(*flags)
    assert exit_code == 0
    assert any(line.endswith("weights of 1.0 GiB; a run downloads the rest") for line in said)
    monkeypatch.setattr(machine_check, "ask_hub", silent)
    assert "is incomplete in the Hub's cache" in the_problem(*flags)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "holds no weights" in the_problem(*flags)


def test_weights_in_the_download_folder_need_no_config_there_and_do_not_count_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM downloads only weights there; offline it reads everything from the Hub's cache."""
    (cached(tmp_path / "weights") / "config.json").unlink()
    flags = ["--model=someone/shapes", f"--download-dir={tmp_path / 'weights'}"]
    flags.append(f"--output={tmp_path / 'out'}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")  # the other variable is set, and counts
    assert lines(*flags)[0] == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    assert "vLLM does not look in --download-dir" in the_problem(*flags)
    cached(tmp_path / "cache")
    assert lines(*flags)[0] == 0


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_that_does_not_know_a_name_or_never_answers_is_one_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: bool
) -> None:
    def ask(*arguments: object, **options: object) -> None:
        if not answers:
            threading.Event().wait(20)
        raise ValueError("404")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", ask)
    if not answers:
        monkeypatch.setattr(model_folder, "_HUB_PATIENCE_S", 0.1)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    told = the_problem("--model=no-such/model", f"--output={tmp_path}")
    assert f"the Hub does not {'offer it' if answers else 'answer'}" in told


def test_a_hub_that_cannot_be_reached_is_the_problem_and_not_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*arguments: object, **options: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", ask)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    told = the_problem("--model=no-such/model", f"--output={tmp_path}")
    assert told.endswith("and the Hub cannot be reached; check the name and the network")


@pytest.mark.parametrize("model", ["demo2", "no-such/model"])
@pytest.mark.parametrize("is_begun", [False, True])
def test_a_run_says_the_same_of_a_model_that_is_nowhere_before_it_writes_or_loads_anything(
    tmp_path: Path, model: str, is_begun: bool
) -> None:
    flags = [f"--model={model}", f"--output={tmp_path / 'out'}"]
    if is_begun:
        begun = run(INPUT, *QUICK, flags[1], "--limit=5", command=FAKE)
        assert begun.exit_code == 0, begun.stderr
    told = the_problem(*flags).removeprefix("PROBLEM  ")
    result = run_here(INPUT, *flags)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (2, f"vllm-caption: error: {told}")
    assert "Checking the model" not in result.stderr
    assert told.endswith("; did you mean demo?") == (model == "demo2")
    assert (tmp_path / "out").exists() == is_begun


def test_a_rerun_that_has_nothing_left_to_do_needs_no_model(tmp_path: Path) -> None:
    output = f"--output={tmp_path / 'out'}"
    finished = run(INPUT, *QUICK, output, command=FAKE)
    assert finished.exit_code == 0, finished.stderr
    result = run_here(INPUT, output, "--model=no-such/model")
    assert result.exit_code == 0, result.stderr
    assert "captioned 69 (0 in this run), failed 0" in result.stdout


def test_the_size_that_the_hub_reports_of_a_models_weights_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(numbers: dict[str, int] | None, name: str = "Qwen2VL") -> str:
        safetensors = None if numbers is None else SimpleNamespace(parameters=numbers)
        found = SimpleNamespace(safetensors=safetensors, config={"architectures": [name]})
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: found)
        exit_code, said = lines("--model=no-such/model", f"--output={tmp_path}")
        assert exit_code == 0
        return said[1].removeprefix("ok       --model no-such/model: ")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert told({"BF16": 2**30}) == "on the Hub, weights of 2.0 GiB; a run downloads it first"
    assert told({"F4": 2**31}) == "on the Hub, weights of 1.0 GiB; a run downloads it first"
    assert told(None) == "on the Hub; a run downloads it first"
    assert told({"BF16": 2**30}, "Qwen2_5OmniModel") == "on the Hub; a run downloads it first"


@pytest.mark.parametrize("json_to", ["--json", "--json=doctor.json"])
def test_names_that_are_not_utf8_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, json_to: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_here("doctor", "--model=/no/\udcff", "--output=\udcfe", json_to)
    assert result.exit_code == 2
    written = tmp_path / "doctor.json"
    found = json.loads(written.read_bytes() if written.exists() else result.stdout)
    assert "--model /no/\\udcff" in [check["subject"] for check in found["checks"]]


@pytest.mark.parametrize(
    "model", ["x" * 300, "/" + "x" * 300, "~/model", f"{__file__}/model", "someone/shapes:Q4"]
)
def test_a_name_that_no_folder_can_have_is_a_problem_not_a_crash(
    tmp_path: Path, model: str
) -> None:
    exit_code, said = lines(f"--model={model}", f"--output={tmp_path}")
    assert exit_code == (0 if ":" in model else 2)
    assert said[1].removeprefix("PROBLEM").strip().startswith(("--model", "ok"))


def test_a_model_below_an_unreadable_folder_is_a_line_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **options: object) -> os.stat_result:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return os.stat(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "stat", refuse)
    told = the_problem(f"--model={tmp_path / 'locked'}", f"--output={tmp_path}")
    assert told.endswith("locked: cannot be read (Permission denied)")


def test_the_first_image_of_an_input_is_looked_up(tmp_path: Path) -> None:
    flags = ["--model=demo", f"--output={tmp_path / 'out'}"]
    table = tmp_path / "table.csv"
    table.write_text("file\n\nx.png\n")
    warning = f"warning  --input {table}: its first image, x.png, cannot be captioned: "
    exit_code, said = lines(*flags, f"--input={table}")
    assert exit_code == 0
    assert [line.startswith(warning) for line in said].count(True) == 1
    (tmp_path / "x.png").write_bytes(b"not opened")
    exit_code, said = lines(*flags, f"--input={table}")
    assert exit_code == 0
    assert f"ok       --input {table}: its first image is x.png" in said


def test_an_input_without_images_is_a_problem(tmp_path: Path) -> None:
    flags = ["--model=demo", f"--output={tmp_path / 'out'}"]
    (tmp_path / "empty").mkdir()
    told = the_problem(*flags, f"--input={tmp_path / 'empty'}")
    assert told.startswith(f"PROBLEM  --input {tmp_path / 'empty'}: no file below it ends in")
    told = the_problem(*flags, f"--input={tmp_path / 'gone'}")
    assert told.startswith(f"PROBLEM  --input {tmp_path / 'gone'}: does not exist")
    (tmp_path / "table.csv").write_text("file\n")
    assert "has no rows" in the_problem(*flags, f"--input={tmp_path / 'table.csv'}")
    (tmp_path / "blank.jsonl").write_text('{"file": 1}\n')
    told = the_problem(*flags, f"--input={tmp_path / 'blank.jsonl'}")
    assert told.endswith("names no image: `file` is a number, not a string")


def test_a_run_without_an_input_or_with_a_prompt_that_does_not_exist_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--model=demo", f"--output={tmp_path / 'out'}"]
    assert the_problem(*flags, "--prompt=gone.md").startswith("PROBLEM  --prompt gone.md: ")
    monkeypatch.chdir(tmp_path)
    result = run_here("doctor", *flags)
    assert result.exit_code == 2
    assert "PROBLEM  no input: name a folder of images" in result.stdout


def test_an_output_that_is_a_dangling_link_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "captions").symlink_to(tmp_path / "gone")
    told = the_problem("--model=demo", f"--output={tmp_path / 'captions' / 'run'}")
    assert "captions is not a folder but a broken link" in told


def test_without_torch_vllm_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor.metadata.version

    def version(name: str) -> str:
        if name == "torch":
            raise doctor.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    told = the_problem("--model=demo", f"--output={tmp_path}")
    assert told.startswith("PROBLEM  torch is not installed: vLLM needs it: pip install")


@pytest.mark.parametrize(
    ("model", "variable"), [("s3://bucket/model", ""), ("someone/shapes", "VLLM_USE_MODELSCOPE")]
)
def test_a_model_that_is_not_a_local_folder_is_left_to_vllm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, variable: str
) -> None:
    if variable:
        monkeypatch.setenv(variable, "True")
    exit_code, said = lines(f"--model={model}", f"--output={tmp_path}")
    assert exit_code == 0
    assert f"ok       --model {model}: is not a folder here; not looked up on the Hub" in said


def test_an_unreadable_model_folder_is_a_line_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> Weights:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("vllm_caption.engines.model_folder.read_weights", refuse)
    told = the_problem("--model=demo", f"--output={tmp_path}")
    assert told.endswith("cannot be read (Permission denied)")


def test_without_vllm_there_is_one_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> str:
        raise UsageError("vllm", "is not installed", INSTALL_HINT)

    for module in (doctor, hardware, machine_check):
        monkeypatch.setattr(module, "platform", absent)
    told = the_problem("--model=demo", f"--output={tmp_path}")
    assert told.startswith("PROBLEM  vllm is not installed: pip install")


def test_the_machines_of_a_cluster_are_not_checked(tmp_path: Path) -> None:
    flags = ["--model=demo", f"--output={tmp_path}", "--executor=ray", "--data-parallel-size=2"]
    exit_code, said = lines(*flags)
    assert exit_code == 0
    assert any(line.startswith("warning  --executor ray: ") for line in said)


def test_an_output_folder_that_another_run_holds_is_a_problem(tmp_path: Path) -> None:
    lock = OutputLock(tmp_path)
    try:
        told = the_problem("--model=demo", f"--output={tmp_path}")
    finally:
        lock.release()
    assert told.startswith(f"PROBLEM  --output {tmp_path}: is in use by process ")


@pytest.mark.parametrize("folder", ["/proc/x", "/sys/kernel/x/y"])
def test_an_output_where_the_kernel_takes_no_files_is_a_problem(folder: str) -> None:
    above = "/proc" if folder == "/proc/x" else "/sys/kernel"
    told = the_problem("--model=demo", f"--output={folder}")
    assert told.endswith(f"{folder}: nothing can be written in {above}; choose another")


def test_an_output_that_is_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "captions").touch()
    assert "is not a folder" in the_problem("--model=demo", f"--output={tmp_path / 'captions'}")


def test_little_memory_and_few_cores_are_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "available_bytes", lambda: 2**30)
    monkeypatch.setattr(doctor, "usable_cores", lambda: 3.5)
    flags = ["--model=demo", f"--output={tmp_path}", "--data-parallel-size=2"]
    exit_code, said = lines(*flags)
    assert exit_code == 0
    assert "warning  cores: 3.5 for 2 engines; 4 or more are recommended" in said
    assert any(line.startswith("warning  memory: 1.0 GiB available for 2 engines") for line in said)


@needs_compiler
def test_every_problem_of_a_machine_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PretendGpus(8, capability="7.0", driver="550.54.15", cuda="12.4").install(monkeypatch)
    monkeypatch.setattr(hardware, "platform", lambda: "cuda")
    monkeypatch.setattr(machine_check, "platform", lambda: "cuda")
    monkeypatch.setattr(machine_check, "torch_cuda", lambda: (13, 0))
    exit_code, said = lines("--model=demo", f"--output={tmp_path}")
    assert exit_code == 2
    problems = [line for line in said if line.startswith("PROBLEM")]
    assert [line.split(":")[0] for line in problems] == [
        "PROBLEM  NVIDIA driver",
        "PROBLEM  GPU 0, 1, 2, 3, 4, 5, 6, 7",
    ]
    assert said[-1] == "The run cannot start yet: 2 problems above."


@needs_compiler
def test_gpus_that_the_cpu_build_ignores_are_pointed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PretendGpus(8).install(monkeypatch)
    exit_code, said = lines("--model=demo", f"--output={tmp_path}")
    assert exit_code == 0
    assert said[0].startswith("warning  vLLM: ")
    assert "this machine has 8 GPUs" in said[0]
    assert "pip install '.[cuda]'" in said[0]


def test_json_holds_the_same_checks(tmp_path: Path) -> None:
    flags = ["--model=demo", f"--output={tmp_path / 'out'}"]
    _, said = lines(*flags, f"--json={tmp_path / 'doctor.json'}")
    found = json.loads((tmp_path / "doctor.json").read_bytes())
    assert found["starts"] is True
    subjects = [check["subject"] for check in found["checks"]]
    assert subjects[:2] == ["vLLM", "--model demo"]
    assert len(subjects) == len(said) - 2
    assert set(found["checks"][0]) == {"subject", "state", "text", "transient"}


def test_json_without_a_file_is_all_that_is_printed(tmp_path: Path) -> None:
    result = run_here("doctor", "--model=./nowhere", f"--output={tmp_path}", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["starts"] is False
