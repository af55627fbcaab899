"""vLLM's flags that a decision of ours depends on: how many GPUs an engine uses, and which ones."""

from __future__ import annotations

import itertools
import re

import pytest
from support.job import run_here

from vllm_caption.captions.prompt import RenderedPrompt
from vllm_caption.captions.question import Question
from vllm_caption.commands.run import parse_run
from vllm_caption.config import ImageConfig, SamplingConfig
from vllm_caption.demo import MODEL_DIR
from vllm_caption.engine_flags import (
    GPU_FACTORS,
    check_names,
    flags_of_vllm,
    gpus_per_engine,
    named_flags,
)
from vllm_caption.engines import hardware
from vllm_caption.errors import UsageError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The GPUs that a machine has."""
    found = [str(number) for number in range(8)]
    monkeypatch.setattr(hardware, "platform", lambda: "cuda")
    monkeypatch.setattr(hardware, "visible_gpus", lambda: found)
    return found


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("", 1),
        ("-tp 2", 2),
        ("-tp=2 -pp=2", 4),
        ("--prefill-context-parallel-size 2", 2),
        ("--prefill_context_parallel_size=2 --tensor-parallel-size 4", 8),
        ("-pcp 2 -tp 2", 4),
        ("-pcp=2", 2),
        ("-dcp 2 -tp 2", 2),  # these ranks are those of -tp
        ("--enable-expert-parallel -tp 4", 4),
        ("-pcp nonsense", 1),  # vLLM says what is wrong with it
        ("-pcp 0", 1),
    ],
)
def test_every_parallel_size_that_multiplies_the_gpus_of_an_engine_counts(
    flags: str, expected: int
) -> None:
    assert gpus_per_engine(flags.split()) == expected
    assert parse_run([*flags.split(), "-dp=1"]).engine.gpus_per_engine == expected


def test_other_spellings_of_a_flag_are_the_same_flag() -> None:
    for words in ("-q fp8", "-q=fp8", "-qfp8", "--quantization=fp8"):
        assert named_flags(words.split()) == {"quantization": "fp8"}
    share = {"gpu_memory_utilization": "0.5"}
    assert named_flags(["--device-memory-utilization=0.5"]) == share
    assert named_flags(["--gpu_memory_utilization", "0.5"]) == share
    assert named_flags(["-O3"]) == {"O3": ""}


def test_default_number_of_engines_and_their_gpus_follow_from_all_sizes(gpus: list[str]) -> None:
    engine = parse_run(["-tp=2", "-pcp", "2"]).engine
    assert engine.data_parallel_size == 2
    assert hardware.assign_gpus(2, engine.gpus_per_engine) == ["0,1,2,3", "4,5,6,7"]
    with pytest.raises(UsageError, match=r"needs 12 GPUs \(4 per engine\), 8 visible"):
        hardware.assign_gpus(3, engine.gpus_per_engine)


@pytest.mark.parametrize(
    ("flags", "named", "remedy"),
    [
        ("--data-parallel-size-local 2", "--data-parallel-size-local 2", "--data-parallel-size is"),
        ("-dpl=2", "--data-parallel-size-local 2", "--data-parallel-size is"),
        ("-dpn 1", "--data-parallel-rank 1", "--data-parallel-size is"),
        ("--data_parallel_start_rank=4", "--data-parallel-start-rank 4", "--data-parallel-size is"),
        ("--data-parallel-backend ray", "--data-parallel-backend ray", "--data-parallel-size is"),
        ("--data-parallel-hybrid-lb", "--data-parallel-hybrid-lb:", "--data-parallel-size is"),
        ("--enable-elastic-ep", "--enable-elastic-ep:", "--data-parallel-size is"),
        ("--nnodes 2", "--nnodes 2", "--executor ray"),
        ("-n 2 -r 1", "--nnodes 2", "--executor ray"),
        ("--device-ids 2,3", "--device-ids 2,3", "CUDA_VISIBLE_DEVICES"),
        (
            "--distributed-executor-backend=external_launcher",
            "--distributed-executor-backend external_launcher",
            "starts its engines itself",
        ),
    ],
)
def test_flag_with_which_engines_would_share_gpus_is_refused_by_name(
    flags: str, named: str, remedy: str
) -> None:
    for command in ((), ("plan",)):
        result = run_here(*command, "--model=demo", "-dp=1", *flags.split())
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith(f"vllm-caption: error: {named}")
        assert remedy in line


# --- against vLLM itself -------------------------------------------------------------------------


@pytest.mark.engine
def test_vllm_counts_the_gpus_of_an_engine_as_we_do() -> None:
    from vllm.config import ParallelConfig

    for sizes in itertools.product((1, 2, 3), repeat=len(GPU_FACTORS)):
        given = dict(zip(GPU_FACTORS, sizes, strict=True))
        flags = [f"--{name}={size}" for name, size in given.items()]
        parallel = ParallelConfig(**given, distributed_executor_backend="mp")
        assert parallel.world_size_across_dp == gpus_per_engine(flags)


@pytest.mark.engine
def test_vllm_has_no_flag_that_its_source_hides_and_no_parallel_one_that_is_not_known_here() -> (
    None
):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    shared = {"decode_context_parallel_size", "enable_expert_parallel"}
    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    options = {option for action in parser._actions for option in action.option_strings}
    opposites = {
        option for option in options if option.replace("--no-", "--", 1) in flags_of_vllm()
    }
    assert options - opposites == flags_of_vllm() - {"-O", "--config"} - opposites
    check_names(sorted(options), ())
    for action in parser._actions:
        name = action.dest
        if not re.search(r"parallel_(size|rank|start)|data_parallel|nnodes|node_rank", name):
            continue
        for option in action.option_strings:
            (read,) = named_flags([option])
            assert read == name or read.startswith("no_") or name == "data_parallel_size"
        if name in {*GPU_FACTORS, *shared, "data_parallel_size"}:
            continue
        with pytest.raises(UsageError):
            parse_run([f"--{name}=2", "-dp=1"])


@pytest.mark.engine
def test_a_flag_of_vllm_that_is_not_spelt_out_is_refused_before_an_engine_starts() -> None:
    from vllm_caption.engines.vllm_engine import check_engine_args

    flags = (f"--model={MODEL_DIR}", "--tensor-parallel=2")  # argparse would complete it
    text = RenderedPrompt(None, "Describe it.")
    question = Question("p", text, text)
    with pytest.raises(UsageError, match=r"unrecognized arguments: --tensor-parallel=2"):
        check_engine_args(flags, ImageConfig(), SamplingConfig(), question, on_cpu=True)


# --- the bundled model ---------------------------------------------------------------------------


@pytest.mark.engine
def test_bundled_model_gets_a_small_cache_on_a_gpu_unless_the_user_sizes_it() -> None:
    from vllm_caption.engines.vllm_engine import CPU_DEFAULTS, DEMO_CACHE_BYTES, defaults

    size, demo = "kv_cache_memory_bytes", str(MODEL_DIR)
    assert defaults(demo, set(), on_cpu=False)[size] == DEMO_CACHE_BYTES
    assert size not in defaults(demo, {"num_gpu_blocks_override"}, on_cpu=False)
    assert size not in defaults("Qwen/Qwen2.5-VL-7B-Instruct", set(), on_cpu=False)
    assert defaults(demo, set(), on_cpu=True)[size] == CPU_DEFAULTS[size]


@pytest.mark.engine
def test_small_cache_of_the_bundled_model_holds_enough_blocks_and_not_many() -> None:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    from vllm_caption.engines.vllm_engine import DEMO_CACHE_BYTES

    # As in its config.json: 3 layers of 2 heads of 32, at most 2,048 tokens.
    layer = FullAttentionSpec(block_size=16, num_kv_heads=2, head_size=32, dtype=torch.bfloat16)
    num_blocks = DEMO_CACHE_BYTES // (3 * layer.page_size_bytes)
    assert num_blocks == 21_845
    assert num_blocks > 128 * (2048 // 16)
    assert 73 * 2**30 // (3 * layer.page_size_bytes) > 6_000_000, "what it replaces"
