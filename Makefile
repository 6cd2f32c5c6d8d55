# Each target makes what it needs: `make demo` and `make test` work alone, from a fresh clone with Python and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint aot gpu gpu-full gpu-check wheel clean help

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.demo  ## A photograph through the stock and the fused model: parity, timing table, plot.
	$(BIN)/mobilevit-kernels demo

test: $(VENV)/.test  ## All tests; those that need a GPU are skipped without one.
	$(BIN)/python -m pytest -n auto --dist worksteal

lint: $(VENV)/.lint  ## ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

aot: $(VENV)/.test  ## Compile every Triton kernel ahead of time for sm_80, sm_90 and sm_100; no GPU needed.
	set -e; for arch in 80 90 100; do \
	  env -u TRITON_INTERPRET $(BIN)/python -m mobilevit_kernels.triton.aot --arch $$arch \
	    --output docs/triton-aot-sm$$arch.json; done

# MVK_OFFLINE=1: $(PYTHON) as it is, with all dependencies; else .venv, which is made before the budget's clock starts.
ifeq ($(MVK_OFFLINE),1)
gpu_python := $(PYTHON)
else
gpu_python := $(BIN)/python
gpu_venv := $(VENV)/.gpu
endif

gpu: $(gpu_venv)  ## On a GPU: build, tests, quick benchmarks, sanitizer in MVK_BUDGET_S seconds; results in RESULTS_DIR.
	@$(gpu_python) tools/gpu.py

gpu-full: $(gpu_venv)  ## The same with the whole benchmark suite and no budget.
	@$(gpu_python) tools/gpu.py --full

gpu-check:
	@$(PYTHON) tools/gpu.py --check

wheel: | $(VENV)/bin/python  ## dist/*.whl with the CUDA kernels for every supported GPU; needs an nvcc.
	MVK_BUILD_CUDA=1 MVK_CUDA_ARCHITECTURES="80;86;89;90a;100;120;120-ptx" $(BIN)/python -m pip wheel --no-deps -w dist .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

$(VENV)/.gpu: pyproject.toml | gpu-check $(VENV)/bin/python
	MVK_BUILD_CUDA=0 $(BIN)/python -m pip install --quiet -e '.[test,bench]'
	touch $@

$(VENV)/.lint: pyproject.toml | $(VENV)/.test
	$(BIN)/python -m pip install --quiet -e '.[lint]'
	touch $@

clean:  ## Remove the virtual environment and caches.
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache
