# make setup | demo | test | lint, and the slower checks behind test-slow, test-hpu, test-fresh, test-faults and test-lowest.
# Everything is installed into .venv (test-lowest: .venv-lowest); nothing outside this folder changes.

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# TORCH_INDEX=URL: the package index to take torch from, for example one that has CPU builds only.
TORCH_INDEX ?=
# The versions that the tests ran with; CONSTRAINTS= takes the newest that requirements.txt allows.
CONSTRAINTS ?= constraints.txt
PIP_INSTALL := -m pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
LOWEST := .venv-lowest
PYTEST := $(BIN)/python -m pytest
# Marks that take long, or need what not every machine has; each has its own target.
FAST := not slow and not hpu_matrix and not fresh and not faults

export PATH := $(BIN):$(PATH)
export OMP_NUM_THREADS ?= 1

.PHONY: setup demo test test-slow test-hpu test-fresh test-faults test-lowest test-mutations lint format clean

setup: $(VENV)/.cpu

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11: make setup PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.cpu: requirements.txt requirements-cpu.txt $(CONSTRAINTS) | $(VENV)/bin/python
ifneq ($(TORCH_INDEX),)
	$(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) $(shell grep '^torch==' requirements-cpu.txt)
endif
	$(BIN)/python $(PIP_INSTALL) -r requirements-cpu.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.cpu
	$(BIN)/python $(PIP_INSTALL) -r requirements-dev.txt
	@touch $@

demo: setup
	@unset OMP_NUM_THREADS; $(BIN)/python demo/run.py

test: $(VENV)/.dev
	$(PYTEST) -n 2 --dist loadscope --no-loadscope-reorder -m "$(FAST)"

test-slow: $(VENV)/.dev
	$(PYTEST) -m "slow and not fresh"

test-hpu: $(VENV)/.dev
	$(PYTEST) -m hpu_matrix

test-fresh: $(VENV)/.dev
	$(PYTEST) -m fresh

test-faults: $(VENV)/.dev
	$(PYTEST) -m faults

# The lowest versions that the requirements allow, but for torch: the unit tests, and the README's commands for a CPU.
$(LOWEST)/.dev: requirements.txt requirements-cpu.txt requirements-dev.txt
	$(PYTHON) -m venv $(LOWEST)
	sed -nE 's/^([A-Za-z0-9_-]+)>=([0-9.]+).*/\1==\2/p' $^ > $(LOWEST)/lowest.txt
ifneq ($(TORCH_INDEX),)
	$(LOWEST)/bin/python -m pip install --quiet --index-url $(TORCH_INDEX) $(shell grep '^torch==' requirements-cpu.txt)
endif
	$(LOWEST)/bin/python -m pip install --quiet -r requirements-dev.txt -c $(LOWEST)/lowest.txt
	@touch $@

test-lowest: $(LOWEST)/.dev
	PATH="$(CURDIR)/$(LOWEST)/bin:$$PATH" $(LOWEST)/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "$(FAST)"

# Small changes to the code, which the tests must notice: MUTATIONS="pretraining/lamb.py --all" for one file's. Hours.
test-mutations: $(VENV)/.dev
	$(BIN)/python tests/mutations.py $(MUTATIONS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(LOWEST) .cache demo_output
