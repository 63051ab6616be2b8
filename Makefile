# `make demo` needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test check format docs wheel benchmark clean

help: ## This list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/\1\t\2/' | expand -t 12

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

install: $(VENV)/.installed ## A virtual environment with the pinned packages

demo: install ## Listen to the example clips
	@$(RUN)/python -m modeling_mmemo.examples.demo

test: install ## All tests, offline
	$(RUN)/python -m pytest

check: install ## Lint, format and types
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: install ## Format and mend what lint can mend
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

docs: install ## The documentation as a site, in site/
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet

wheel: install ## The wheel, in dist/
	rm -rf dist build
	$(RUN)/python -m build --wheel --outdir dist .

benchmark: install ## Time what the package does against what it replaces
	$(RUN)/python benchmarks/feature_extraction.py
	$(RUN)/python benchmarks/timeline.py
	$(RUN)/python benchmarks/inference.py

clean: ## Remove the environment and what was built
	rm -rf $(VENV) build dist site *.egg-info
