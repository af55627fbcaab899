# Two commands do everything on a bare machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CUDA build of vLLM where a GPU answers, the CPU build elsewhere; to choose, give each call BUILD=cpu.
BUILD ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
OVERRIDES_cpu := --override requirements/cpu-overrides.txt
STAMP := $(VENV)/.$(BUILD)-installed

.DEFAULT_GOAL := help

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.PHONY: setup
setup: $(STAMP) ## build .venv with the vLLM build that fits this machine

$(STAMP): pyproject.toml requirements/$(BUILD).txt requirements/cpu-overrides.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv==0.13.9'
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint requirements/$(BUILD).txt $(OVERRIDES_$(BUILD)) --editable '.[$(BUILD),test]'
	@touch $@

.PHONY: demo
demo: setup ## caption the bundled sample with the bundled model
	$(BIN)/python -m vllm_caption demo

.PHONY: test
test: setup ## run all tests, on real engines, two files at a time
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: check
check: setup ## lint, types, and the tests that need no engine
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not engine'

.PHONY: bench
bench: setup ## throughput against the alternatives: about an hour; CONTESTS="start split" for some
	$(BIN)/python -m benchmarks.throughput $(CONTESTS)

.PHONY: bench-ray
bench-ray: setup ## the environment with Ray Data LLM that `make bench` uses if it is there
	$(PYTHON) -m venv build/ray-bench
	$(BIN)/uv pip install --quiet --compile-bytecode --python build/ray-bench/bin/python --constraint requirements/cpu.txt $(OVERRIDES_cpu) -r requirements/ray-bench.txt

.PHONY: pins
pins: setup ## resolve the pinned versions anew
	$(BIN)/uv pip compile pyproject.toml --extra cpu --extra test $(OVERRIDES_cpu) --no-header --no-annotate --universal --python-version 3.11 --quiet --upgrade -o requirements/cpu.txt
	$(BIN)/uv pip compile pyproject.toml --extra cuda --extra test --no-header --no-annotate --universal --python-version 3.11 --quiet --upgrade -o requirements/cuda.txt

.PHONY: clean
clean: ## remove .venv and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache demo_output
