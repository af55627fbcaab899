"""What is checked on a machine before an engine starts, in the words that the user reads.

NVML describes the machine (`PretendGpus`); everything else is checked for real, or removed.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
from support.pretend_gpus import PretendGpus, needs_compiler

from tools.gpu.seven_billion import make_seven_billion
from vllm_caption.config import EngineConfig
from vllm_caption.engines import hardware, machine_check
from vllm_caption.engines.hardware import assign_gpus, first_that_answer
from vllm_caption.engines.machine_check import (
    Check,
    await_machine,
    check_machine,
    find_weights,
    problem_among,
    weight_bytes,
)
from vllm_caption.engines.weights import Weights
from vllm_caption.errors import UsageError
from vllm_caption.monitoring.gpu_devices import visible_gpus

pytestmark = needs_compiler
GIB = 2**30


@pytest.fixture(autouse=True)
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's CUDA build, with torch for CUDA 13.0."""
    monkeypatch.setattr(hardware, "platform", lambda: "cuda")
    monkeypatch.setattr(machine_check, "platform", lambda: "cuda")
    monkeypatch.setattr(machine_check, "torch_cuda", lambda: (13, 0))


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder with the weights of a 7B model in 16 bit, 15.4 GiB."""
    return str(make_seven_billion(tmp_path_factory.mktemp("model") / "7b"))


def config(model: str = "demo", *engine_args: str, **sizes: int) -> EngineConfig:
    return EngineConfig(model=model, engine_args=engine_args, **sizes)


def checks(engine: EngineConfig) -> list[Check]:
    """The checks for one engine per group of the machine's GPUs."""
    number = len(visible_gpus()) // engine.gpus_per_engine
    return check_machine(engine, assign_gpus(number, engine.gpus_per_engine), find_weights(engine))


def problem(engine: EngineConfig) -> Check:
    """The one reason why no engine can start."""
    problems = [check for check in checks(engine) if check.state == "problem"]
    assert len(problems) == 1
    return problems[0]


def assert_says(check: Check, *patterns: str) -> None:
    said = f"{check.subject}: {check.text}"
    assert [pattern for pattern in patterns if not re.search(pattern, said)] == []


def states(found: Sequence[Check]) -> set[str]:
    return {check.state for check in found}


# --- the machine ------------------------------------------------------------------------------


def test_eight_large_gpus_are_ready(monkeypatch: pytest.MonkeyPatch, seven_billion: str) -> None:
    PretendGpus(8).install(monkeypatch)
    found = checks(config(seven_billion))
    assert states(found) == {"ok"}
    assert [check.subject for check in found] == [
        "NVIDIA driver",
        "GPU 0, 1, 2, 3, 4, 5, 6, 7",
        "C compiler",
        "Python.h",
    ]


def test_a_driver_older_than_torchs_cuda_is_named_with_the_one_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    PretendGpus(8, driver="550.54.15", cuda="12.4").install(monkeypatch)
    assert_says(problem(config()), "NVIDIA driver", r"550\.54\.15", r"12\.4", r"13\.0", "580")


def test_a_driver_of_the_same_major_version_is_new_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_check, "torch_cuda", lambda: (13, 2))
    PretendGpus(1, driver="580.65.06", cuda="13.0").install(monkeypatch)
    assert problem_among(checks(config())) is None


def test_gpus_older_than_turing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(4, name="Tesla V100", capability="7.0", gib=32).install(monkeypatch)
    assert_says(problem(config()), "^GPU 0, 1, 2, 3: ", "V100", r"7\.0", r"7\.5", "newer GPU")


def test_what_is_too_old_follows_the_cuda_of_the_installed_torch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine_check, "torch_cuda", lambda: (12, 9))
    PretendGpus(1, capability="7.0", driver="550.54.15", cuda="12.4").install(monkeypatch)
    assert problem_among(checks(config())) is None
    monkeypatch.setattr(machine_check, "torch_cuda", lambda: None)
    assert problem_among(checks(config())) is None


def test_an_old_driver_is_served_by_nvidias_compatibility_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    PretendGpus(1, driver="550.54.15", cuda="12.4").install(monkeypatch)
    monkeypatch.setenv("VLLM_ENABLE_CUDA_COMPATIBILITY", "1")
    assert problem_among(checks(config())) is None


def test_one_old_gpu_among_others_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(2, name=["Quadro P400", "L4"], capability=["6.1", "8.9"]).install(monkeypatch)
    found = checks(config())
    assert problem_among(found) is None
    (warning,) = [check for check in found if check.state == "warning"]
    assert_says(warning, "^GPU 0: Quadro P400", "the other engines run without it")


def test_a_gpu_that_is_lost_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(1, lost=[0]).install(monkeypatch)
    assert_says(problem(config()), "^GPU 0: does not answer", "GPU is lost")


def test_a_driver_that_stops_answering_half_way_counts_as_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    PretendGpus(2).install(monkeypatch)
    monkeypatch.setattr("pynvml.nvmlDeviceGetCount", lambda: pynvml_refuses())
    with pytest.raises(UsageError, match=r"NVIDIA driver: does not answer \(NVML: Not Supported\)"):
        assign_gpus(1, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert_says(problem(config()), "^NVIDIA driver: does not answer [(]NVML: Not Supported[)]")


@pytest.mark.parametrize("question", ["Name", "UUID", "MigMode", "CudaComputeCapability"])
def test_one_value_that_nvml_does_not_know_stops_no_engine(
    monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    PretendGpus(2, mig_slices=[0, 2]).install(monkeypatch)
    monkeypatch.setattr(f"pynvml.nvmlDeviceGet{question}", lambda *_: pynvml_refuses())
    assert problem_among(checks(config())) is None


@pytest.mark.parametrize("size", [{"capability": "7.0"}, {"gib": 8}])
def test_a_gpu_whose_name_nvml_does_not_know_is_called_the_gpu(
    monkeypatch: pytest.MonkeyPatch, seven_billion: str, size: dict[str, Any]
) -> None:
    PretendGpus(1, **size).install(monkeypatch)
    monkeypatch.setattr("pynvml.nvmlDeviceGetName", lambda _: pynvml_refuses())
    told = problem(config(seven_billion)).text
    assert "the GPU has" in told
    assert "None" not in told


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, 999])
def test_a_gpu_that_nvml_cannot_open_is_named_with_nvmls_reason(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(_: int) -> None:
        raise pynvml.NVMLError(code)

    PretendGpus(1).install(monkeypatch)
    monkeypatch.setattr("pynvml.nvmlDeviceGetHandleByIndex", refuse)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert_says(problem(config()), "^GPU 0: does not answer [(]NVML: [FU]")


def test_a_jetson_needs_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(init_error=9).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert problem(config()).subject == "NVIDIA driver"
    monkeypatch.setattr(machine_check, "is_jetson", lambda: True)
    assert problem_among(checks(config())) is None


def test_the_libcuda_of_a_container_may_be_newer_than_the_driver(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    PretendGpus(1, driver="550.54.15", cuda="12.4").install(monkeypatch)
    monkeypatch.setattr("pynvml.nvmlSystemGetCudaDriverVersion_v2", lambda: 13000)
    assert problem_among(checks(config())) is None


def test_cuda_is_tried_on_a_gpu_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(4, lost=[0]).install(monkeypatch)
    assert first_that_answer(["0", "1", "2", "3"]) == "1"
    assert first_that_answer(["0,1", "2,3"]) == "2,3"
    assert first_that_answer(["0"]) == "0"
    assert first_that_answer([None, None]) is None


def test_without_a_driver_the_reason_is_nvmls(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(init_error=9).install(monkeypatch)
    with pytest.raises(UsageError, match=r"NVIDIA driver: .* \(NVML: Driver Not Loaded\)"):
        assign_gpus(1, 1)


def test_without_a_compiler_the_package_to_install_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    PretendGpus(1).install(monkeypatch)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert_says(problem(config()), "^C compiler: ", "gcc", "apt install gcc", "CC")
    monkeypatch.setenv("CC", "/opt/gcc/bin/gcc")
    assert_says(problem(config()), "^C compiler: CC names /opt/gcc/bin/gcc, which is not there")
    monkeypatch.setenv("CC", sys.executable)  # any executable
    assert problem_among(checks(config())) is None


def test_a_header_that_the_compiler_finds_through_a_variable_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    PretendGpus(1).install(monkeypatch)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(tmp_path)})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "Python.h").touch()
    monkeypatch.setenv("C_INCLUDE_PATH", f"/nowhere:{tmp_path / 'mine'}")
    assert problem_among(checks(config())) is None


def test_without_pythons_header_the_package_to_install_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    PretendGpus(1).install(monkeypatch)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setattr("sysconfig.get_paths", lambda scheme: {"include": str(tmp_path)})
    assert_says(problem(config()), r"^Python\.h: ", "python3[.][0-9]+-dev")


def test_what_triton_has_compiled_before_needs_no_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    PretendGpus(1).install(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.delenv("CC", raising=False)
    (tmp_path / "4F2A").mkdir()
    (tmp_path / "4F2A" / "cuda_utils.cpython-311-x86_64-linux-gnu.so").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert problem_among(checks(config())) is None


def test_engines_of_several_gpus_need_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(4).install(monkeypatch)
    monkeypatch.setattr(machine_check, "_free_bytes", lambda folder: 64 * 2**20)
    assert problem_among(checks(config())) is None
    found = problem(config(tensor_parallel_size=2))
    assert_says(found, "^/dev/shm: 64.0 MiB free", r"240\.0 MiB", "--ipc=host", "--shm-size")
    monkeypatch.setattr(machine_check, "_free_bytes", lambda folder: 256 * 2**20)
    assert problem_among(checks(config(tensor_parallel_size=2))) is None
    monkeypatch.setenv("VLLM_MQ_MAX_CHUNK_BYTES_MB", "32")
    assert_says(problem(config(tensor_parallel_size=2)), r"320\.0 MiB")


def test_many_slices_are_named_by_the_first_few(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(8, mig_slices=7).install(monkeypatch)
    (slices,) = [check for check in checks(config()) if check.subject.startswith("MIG-")]
    assert slices.subject.count("MIG-") == 8
    assert slices.subject.endswith(", 48 more")


def test_a_mig_slice_cannot_be_one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(1, mig_slices=2).install(monkeypatch)
    assert_says(problem(config(tensor_parallel_size=2)), "^MIG-", "--tensor-parallel-size 1")


def test_engines_on_the_cpu_or_on_other_machines_are_not_checked() -> None:
    assert check_machine(config(), [None, None], None) == []


# --- does the model fit? ------------------------------------------------------------------------


def test_gpus_too_small_for_the_weights_are_reported_with_what_would_fit(
    monkeypatch: pytest.MonkeyPatch, seven_billion: str
) -> None:
    PretendGpus(8, name="Tesla T4", capability="7.5", gib=16, used_gib=0.25).install(monkeypatch)
    found = problem(config(seven_billion))
    assert_says(found, "15.4 GiB in 16 bit", "Tesla T4", "16.0 GiB", "14.7 GiB", "AWQ", "3B")
    assert_says(found, "2 GPUs per engine with --tensor-parallel-size 2")
    assert not found.transient


def test_several_gpus_are_not_advised_if_an_engine_cannot_have_them(
    monkeypatch: pytest.MonkeyPatch, seven_billion: str
) -> None:
    PretendGpus(1, name="Tesla T4", capability="7.5", gib=16).install(monkeypatch)
    assert "--tensor-parallel-size" not in problem(config(seven_billion)).text
    PretendGpus(1, mig_slices=7).install(monkeypatch)
    found = problem(config(seven_billion))
    assert_says(found, "MIG slice", "3B")
    assert "--tensor-parallel-size" not in found.text


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        (("--quantization", "fp8"), {}),
        (("-q=bitsandbytes",), {}),
        (("--cpu-offload-gb=4",), {}),
        (("--load-format=dummy",), {}),
        (("--offload-group-size=8", "--offload-num-in-group=1"), {}),
        (("--config=flags.yaml",), {}),
        (("--hf-overrides.text_config.num_hidden_layers", "2"), {}),
        (("--quantization_config={}",), {}),
        ((), {"tensor_parallel_size": 2}),
        ((), {"pipeline_parallel_size": 2}),
        (("--gpu-memory-utilization=0.999",), {}),
    ],
)
def test_settings_that_make_the_weights_fit_are_accepted(
    monkeypatch: pytest.MonkeyPatch,
    seven_billion: str,
    flags: tuple[str, ...],
    sizes: dict[str, int],
) -> None:
    PretendGpus(2, name="T4", capability="7.5", gib=16, used_gib=0.01).install(monkeypatch)
    assert problem_among(checks(config(seven_billion, *flags, **sizes))) is None


@pytest.mark.parametrize(
    ("flags", "gib"),
    [
        ((), 10),
        (("--dtype=float32",), 20),
        (("--quantization=fp8",), 5),
        (("-qfp8_per_block",), 5),
        (("-q", "mxfp4"), 2.5),
        (("-q", "nvfp4_per_token"), 2.5),
        (("-q", "torchao"), 2.5),
        (("--cpu-offload-gb=4",), 6),
        (("--cpu-offload-gb=nan",), 10),
        (("--cpu-offload-gb=inf",), 10),
    ],
)
def test_weights_count_in_the_precision_of_the_engine(flags: tuple[str, ...], gib: float) -> None:
    assert weight_bytes(Weights({"BF16": 10 * GIB}), config("x", *flags)) == gib * GIB


def test_memory_held_by_others_is_named_with_its_holder_and_may_be_free_soon(
    monkeypatch: pytest.MonkeyPatch, seven_billion: str
) -> None:
    PretendGpus(1, used_gib=70, processes=[(0, 1, 69)]).install(monkeypatch)
    found = problem(config(seven_billion))
    assert_says(found, "^GPU 0: 10.0 GiB of 80.0 GiB", "process 1 [(].*69.0 GiB[)]", "15.4 GiB")
    assert found.transient


@pytest.mark.parametrize(
    ("used_gib", "named"),
    [((1, 79, 1, 1), "GPU 1: "), ((1, 50, 1, 50), "GPU 1, 3: "), ((60, 60), "GPU 0, 1, 2, 3: ")],
)
def test_gpus_of_an_engine_that_others_hold_are_named_with_their_holders(
    monkeypatch: pytest.MonkeyPatch, used_gib: tuple[int, ...], named: str
) -> None:
    PretendGpus(4, used_gib=used_gib, processes=[(0, 1, 1), (1, 2, 49)]).install(monkeypatch)
    found = problem(config(tensor_parallel_size=4))
    assert_says(found, f"^{named}", "process 2 ")
    assert ("process 1 " in found.text) == ("0" in named)


def test_less_memory_than_vllm_asks_for_is_reported_with_the_share_that_is_free(
    monkeypatch: pytest.MonkeyPatch, seven_billion: str
) -> None:
    PretendGpus(1, used_gib=40).install(monkeypatch)
    told = "--gpu-memory-utilization 0.49"  # CUDA itself takes a little of the half that is free
    assert_says(problem(config(seven_billion)), "73.6 GiB", told)
    for flag in (
        "--gpu-memory-utilization=0.5",
        "--gpu_memory_utilization=0.5",
        "--device-memory-utilization=0.5",
        "--load-format=ipc_cache",  # the rest may be the weights, held for this engine
        "--config=flags.yaml",
    ):
        assert problem_among(checks(config(seven_billion, flag))) is None
    for flag in ("--kv-cache-memory-bytes=4G", "--gpu-memory-utilization=nan"):
        assert_says(problem(config(seven_billion, flag)), told)  # vLLM asks for its share at first


def test_a_share_too_small_for_the_weights_is_not_advised(
    monkeypatch: pytest.MonkeyPatch, seven_billion: str
) -> None:
    PretendGpus(1, used_gib=64).install(monkeypatch)
    assert_says(problem(config(seven_billion)), "16.0 GiB of 80.0 GiB", "or leave this GPU out")


def test_memory_reserved_by_the_driver_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a T4, of whose 15 GiB CUDA counts 14.6."""
    PretendGpus(1).install(monkeypatch)

    def answer(gpu: object, version: int = 0) -> SimpleNamespace:
        known = SimpleNamespace(total=15 * GIB, free=int(13.6 * GIB), reserved=int(0.42 * GIB))
        return known if version else SimpleNamespace(total=known.total, free=known.free)

    monkeypatch.setattr("pynvml.nvmlDeviceGetMemoryInfo", answer)
    assert problem_among(checks(config())) is None


def test_a_gpu_whose_memory_is_unknown_is_left_to_the_engine(
    monkeypatch: pytest.MonkeyPatch, seven_billion: str
) -> None:
    PretendGpus(1).install(monkeypatch)
    monkeypatch.setattr("pynvml.nvmlDeviceGetMemoryInfo", lambda *_: pynvml_refuses())
    assert problem_among(checks(config(seven_billion))) is None


def pynvml_refuses() -> None:
    import pynvml

    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


# --- a run's start ------------------------------------------------------------------------------


def wait(engine: EngineConfig) -> list[str]:
    told: list[str] = []
    asyncio.run(await_machine(engine, assign_gpus(1, 1), told.append))
    return told


def test_a_run_waits_for_memory_that_is_free_in_a_moment(
    monkeypatch: pytest.MonkeyPatch, seven_billion: str
) -> None:
    """As where the run before was killed: the driver frees its memory within seconds."""
    machines = iter([PretendGpus(1, used_gib=79), PretendGpus(1, used_gib=79), PretendGpus(1)])

    def look(*arguments: object) -> list[Check]:
        next(machines).install(monkeypatch)
        return check_machine(*arguments)  # type: ignore[arg-type]

    PretendGpus(1).install(monkeypatch)
    monkeypatch.setattr(machine_check, "check_machine", look)
    (told,) = wait(config(seven_billion))
    assert told.startswith("GPU 0: 1.0 GiB of 80.0 GiB are free")


def test_a_run_does_not_wait_forever(monkeypatch: pytest.MonkeyPatch, seven_billion: str) -> None:
    monkeypatch.setattr(machine_check, "PATIENCE_S", 0.0)
    PretendGpus(1, used_gib=79).install(monkeypatch)
    with pytest.raises(UsageError, match=r"GPU 0: 1\.0 GiB of 80\.0 GiB are free"):
        wait(config(seven_billion))


def test_an_engine_with_more_gpus_than_there_are_is_advised_to_use_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    PretendGpus(1).install(monkeypatch)
    with pytest.raises(UsageError, match="1 visible; use at most 1 per engine"):
        assign_gpus(1, 2)


def test_a_driver_that_finds_no_gpu_is_reported_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    PretendGpus(0).install(monkeypatch)
    with pytest.raises(UsageError, match=r"^GPU: the NVIDIA driver finds none; .*docker run"):
        assign_gpus(1, 1)


def test_gpus_hidden_by_cuda_visible_devices_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    PretendGpus(2).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(UsageError, match=r"CUDA_VISIBLE_DEVICES '-1': hides every GPU"):
        assign_gpus(1, 1)


# --- names of GPUs ------------------------------------------------------------------------------

UUIDS = tuple(f"GPU-{name}-0000-4000-8000-000000000000" for name in ("1a2b3c4d", "1a3b3c4d"))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("1,0", ["1", "0"]),
        (" 1 , ", ["1"]),
        ("01", ["1"]),
        ("", []),
        ("0,-1,1", ["0"]),
        ("GPU-1a3b,GPU-1a2b", [UUIDS[1], UUIDS[0]]),
        (UUIDS[0], [UUIDS[0]]),
    ],
)
def test_names_are_read_as_cuda_reads_them_and_completed_for_vllm(
    monkeypatch: pytest.MonkeyPatch, given: str, names: list[str]
) -> None:
    PretendGpus(2, uuids=UUIDS).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == names


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            "0,2",
            "CUDA_VISIBLE_DEVICES 2: there is no such GPU; this machine has indices from 0 to 1",
        ),
        (
            "GPU-ffff",
            f"CUDA_VISIBLE_DEVICES GPU-ffff: no GPU has this name; this machine has {UUIDS[0]}",
        ),
        ("GPU-1a", f"CUDA_VISIBLE_DEVICES GPU-1a: fits 2 GPUs ({UUIDS[0]}, {UUIDS[1]}); name one"),
        ("0,GPU-1a2b", "CUDA_VISIBLE_DEVICES 0,GPU-1a2b: names the same GPU twice (GPU-1a2b)"),
        ("gpu0", "CUDA_VISIBLE_DEVICES gpu0: no GPU has this name"),
    ],
)
def test_a_name_that_no_gpu_has_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: str, told: str
) -> None:
    PretendGpus(2, uuids=UUIDS).install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with pytest.raises(UsageError) as refused:
        visible_gpus()
    assert str(refused.value).startswith(told)


def test_a_gpu_in_slices_counts_as_its_slices_and_its_index_as_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = (f"MIG-00000001-{number:04}-5000-8000-000000000000" for number in range(2))
    PretendGpus(2, mig_slices=[0, 2]).install(monkeypatch)
    assert visible_gpus() == ["0", first, second]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible_gpus() == [first]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-00000001")
    assert visible_gpus() == [first]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", f"{second[:20]},0")
    assert visible_gpus() == [second, "0"]
