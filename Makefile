# Everything a person or CI runs. `make` alone lists it.

PYTHON ?= python3.12
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo dev test test-slow check format lint types layers docs lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# uv comes first, cut out of the same list of pinned hashes: it installs the rest much faster.
$(VENV)/.installed: constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --require-hashes -r $(VENV)/uv.txt
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r constraints.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(VENV)/.installed ## build .venv and score two demo datasets through Dagster
	@$(BIN)/visdiv demo

dev: $(VENV)/.installed ## start Dagster's UI on http://localhost:3000
	DAGSTER_HOME=$(CURDIR) $(BIN)/dagster dev

test: $(VENV)/.installed ## the tests that take under 5 minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

test-slow: $(VENV)/.installed ## the tests that take minutes or gigabytes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n 3 --dist worksteal

check: format lint types layers ## formatting, linting, typing, layers

format: $(VENV)/.installed ## is the code formatted?
	$(BIN)/ruff format --check .

lint: $(VENV)/.installed ## ruff
	$(BIN)/ruff check .

types: $(VENV)/.installed ## mypy, strict
	$(BIN)/mypy

layers: $(VENV)/.installed ## do imports point down only?
	$(BIN)/lint-imports --no-logo

docs: $(VENV)/.installed ## build the documentation into site/, links checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lock: ## pin all dependencies anew (needs uv)
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.12 \
	  --generate-hashes --no-emit-index-url --no-header --output-file constraints.txt

clean: ## remove the environment, the demo's results and the built documentation
	rm -rf $(VENV) .visdiv site
