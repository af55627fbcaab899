"""When the errors of engines that did not start end the run."""

from __future__ import annotations

from vllm_caption.scheduling.start_errors import StartErrors

BROKEN = "RuntimeError: CUDA error: no kernel image is available (log: out/logs/engine-0.log)"


def test_two_engines_with_the_same_error_end_the_run() -> None:
    errors = StartErrors(8)
    assert not errors.add(0, BROKEN)
    assert errors.add(1, BROKEN)


def test_the_only_engine_ends_the_run_at_its_first_error() -> None:
    assert StartErrors(1).add(0, BROKEN)


def test_errors_that_differ_only_in_numbers_are_the_same() -> None:
    errors = StartErrors(8)
    errors.add(0, "Free memory on cuda:0 (1.21/79.1 GiB), pid 4711 (log: out/logs/engine-0.log)")
    assert errors.add(5, "Free memory on cuda:5 (3.4/79.1 GiB), pid 9 (log: out/logs/engine-5.log)")


def test_one_engine_that_fails_twice_proves_nothing_about_the_others() -> None:
    errors = StartErrors(8)
    assert not errors.add(0, BROKEN)
    assert not errors.add(0, BROKEN)


def test_different_errors_prove_nothing_about_the_other_engines() -> None:
    errors = StartErrors(8)
    assert not errors.add(0, BROKEN)
    assert not errors.add(1, "OSError: no space left on device")


def test_once_an_engine_has_been_up_no_start_error_ends_the_run() -> None:
    errors = StartErrors(2)
    errors.add(0, BROKEN)
    errors.came_up()
    assert not errors.add(1, BROKEN)
    assert not errors.add(0, BROKEN)
