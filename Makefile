# `make demo` needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
# Two processes, each with whole test files: module fixtures are built once.
PARALLEL := -n 2 --dist loadfile
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check format docs wheel benchmark clean

help: ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 12

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@# The tests read schemas in these packages, without importing them; their dependencies contradict others.
	$(RUN)/python -m pip install --quiet --no-deps -c constraints.txt kserve tritonclient
	@touch $@

install: $(VENV)/.installed ## Create a virtual environment with the pinned packages

demo: install ## Predict the emotions of the example clips
	@$(RUN)/python -m modeling_mmemo.examples.demo

test: install ## Run the quick tests, offline
	$(RUN)/python -m pytest $(PARALLEL)

test-all: test ## Run the quick and the slow tests: traced architectures, fresh processes, training runs, fuzzing
	$(RUN)/python -m pytest $(PARALLEL) -m "slow and not nightly"

check: install ## Check lint, format and types
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy

format: install ## Format the code and apply lint fixes
	$(RUN)/ruff check --fix .
	$(RUN)/ruff format .

docs: install ## Build the documentation, in site/
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet

wheel: install ## Build the wheel, in dist/
	rm -rf dist build
	$(RUN)/python -m build --wheel --outdir dist .

benchmark: install ## Time the package against its baselines
	$(RUN)/python benchmarks/feature_extraction.py
	$(RUN)/python benchmarks/timeline.py
	$(RUN)/python benchmarks/video.py
	$(RUN)/python benchmarks/inference.py

clean: ## Remove the environment and build outputs
	rm -rf $(VENV) build dist site *.egg-info
