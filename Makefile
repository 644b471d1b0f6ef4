# Two commands for a fresh machine (Python 3.11+, git, make): `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: demo test check bench soak clean format

$(VENV)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.test: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --editable '.[test,parquet]'
	touch $@

$(VENV)/.check: $(VENV)/.test
	$(BIN)/python -m pip install --quiet --editable '.[test,check,parquet]'
	touch $@

demo: $(VENV)/.run  ## three peers tune a classifier; one is killed on the way
	$(BIN)/hopaas-p2p demo

test: $(VENV)/.test  ## the whole suite, on two cores
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/.check  ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.check
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

bench: $(VENV)/.test  ## side by side with Optuna's own storages; writes docs/benchmarks.md
	$(BIN)/python -m tests.benchmarks

soak: $(VENV)/.test  ## the long ones
	$(BIN)/python -m pytest -m soak tests

clean:
	rm -rf $(VENV) build dist *.egg-info
