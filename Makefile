# Two commands do everything on a bare machine: `make demo` and `make test`.
PYTHON ?= python3
# The CUDA build of vLLM where a GPU answers, the CPU build elsewhere; to choose, give each call BUILD=cpu.
FITTING := $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
BUILD ?= $(FITTING)
# One environment for each build: both are a package named vllm. `.venv` is a link to the one that fits.
ENV := .venv-$(BUILD)
CPU := .venv-cpu
OVERRIDES_cpu := --override requirements/cpu-overrides.txt

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: setup
setup: $(ENV)/.installed ## build the environment with the vLLM build that fits this machine, and link it as .venv

.venv-%/.installed: pyproject.toml requirements/%.txt requirements/cpu-overrides.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "Python 3.11, 3.12 or 3.13 is needed; set PYTHON=")'
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check 'uv==0.13.9'
	$(@D)/bin/uv pip install --quiet --compile-bytecode --python $(@D)/bin/python --constraint requirements/$*.txt $(OVERRIDES_$*) --editable '.[$*,test]'
	@if test $* != $(FITTING); then :; elif test -e .venv -a ! -L .venv; then \
	    echo "$(@D) is set up, but .venv is a folder of its own: remove it to have it link here"; \
	else ln -sfn $(@D) .venv; fi
	@touch $@

.PHONY: demo
demo: setup ## caption the bundled sample with the bundled model
	$(ENV)/bin/python -m vllm_caption demo

.PHONY: test
test: $(CPU)/.installed ## run all tests, on real engines of the CPU build, three files at a time
	$(CPU)/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

.PHONY: check
check: $(CPU)/.installed ## lint, types, and the tests that need no engine
	$(CPU)/bin/ruff check .
	$(CPU)/bin/ruff format --check .
	$(CPU)/bin/mypy
	$(CPU)/bin/python -m pytest -m 'not engine'

.PHONY: test-gpu
test-gpu: .venv-cuda/.installed ## what only a GPU can show: the job on this machine's GPUs, one test after the other
	CUDA_PYTHON=.venv-cuda/bin/python .venv-cuda/bin/python -m pytest -m gpu tests/cuda

.PHONY: gpu
gpu: .venv-cuda/.installed ## the first thing to run on a GPU: 9 minutes, results in build/gpu; GPU="--only demo,job8" for some
	.venv-cuda/bin/python -m tools.gpu $(GPU)

.PHONY: check-cuda
check-cuda: $(CPU)/.installed build/check-cuda/.installed ## the CUDA build on pretended GPUs: 9 GB, a C++ compiler, half an hour; TESTS="-k mig" for some
	build/check-cuda/venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	CUDA_PYTHON=build/check-cuda/venv/bin/python $(CPU)/bin/python -m pytest -m 'not gpu' -v tests/cuda $(TESTS)

# Installed as the README tells a user to, into an environment of its own. Where pip finds a CPU build
# of torch first, the CUDA build from PyPI replaces it.
build/check-cuda/.installed: pyproject.toml requirements/cuda.txt | $(CPU)/.installed
	test -x $(@D)/venv/bin/python || $(PYTHON) -m venv $(@D)/venv
	$(@D)/venv/bin/python -m pip install --quiet --disable-pip-version-check '.[cuda]'
	$(@D)/venv/bin/python -c 'import sys, torch; sys.exit(torch.version.cuda is None)' || \
	    $(CPU)/bin/uv pip install --quiet --python $(@D)/venv/bin/python --reinstall-package torch $$(grep -E '^torch(vision)?==' requirements/cuda.txt)
	@touch $@

.PHONY: bench
bench: $(CPU)/.installed ## throughput against the alternatives: about an hour; CONTESTS="start split" for some
	$(CPU)/bin/python -m benchmarks.throughput $(CONTESTS)

.PHONY: bench-ray
bench-ray: $(CPU)/.installed ## the environment with Ray Data LLM that `make bench` uses if it is there
	$(PYTHON) -m venv build/ray-bench
	$(CPU)/bin/uv pip install --quiet --compile-bytecode --python build/ray-bench/bin/python --constraint requirements/cpu.txt $(OVERRIDES_cpu) -r requirements/ray-bench.txt

.PHONY: screenshots
screenshots: $(CPU)/.installed ## the pictures in docs/screenshots, of two runs of the demo; needs Chromium
	$(CPU)/bin/python -m tools.screenshots

.PHONY: pins
pins: $(CPU)/.installed ## resolve the pinned versions anew
	$(CPU)/bin/uv pip compile pyproject.toml --extra cpu --extra test $(OVERRIDES_cpu) --no-header --no-annotate --universal --python-version 3.11 --quiet --upgrade -o requirements/cpu.txt
	$(CPU)/bin/uv pip compile pyproject.toml --extra cuda --extra test --no-header --no-annotate --universal --python-version 3.11 --quiet --upgrade -o requirements/cuda.txt

.PHONY: clean
clean: ## remove the environments and caches
	rm -rf .venv .venv-cpu .venv-cuda build/check-cuda .mypy_cache .ruff_cache .pytest_cache demo_output
