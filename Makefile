# Two commands for a fresh machine (Python 3.11+, git, make): `make demo` and `make test`.
# `make test-all` is for those who change the code.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: demo test test-all check format docs bench soak wheel clean

$(VENV)/.run: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is too old: Python 3.11 or newer is needed. Say which: make PYTHON=python3.12 demo" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "$(PYTHON) has no venv. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	$(PIP) --editable .
	@touch $@

$(VENV)/.demo: $(VENV)/.run
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.all-tests: $(VENV)/.test
	$(PIP) --editable '.[all-tests]'
	@touch $@

$(VENV)/.check: $(VENV)/.all-tests
	$(PIP) --editable '.[check]'
	@touch $@

$(VENV)/.bench: $(VENV)/.all-tests
	$(PIP) --editable '.[bench]'
	@touch $@

demo: $(VENV)/.demo  ## three peers tune a classifier; one is killed on the way
	$(BIN)/hopaas-p2p demo

test: $(VENV)/.test  ## every unit test, and one real path through each store and the worker
	@echo "Some 2,500 tests: three to five minutes on two cores."
	$(BIN)/python -m pytest -n 2 --dist worksteal --short $(TEST_OPTIONS)

test-all: $(VENV)/.all-tests  ## the whole suite: half an hour on two cores
	$(BIN)/python -m pytest -n 3 --dist loadfile $(TEST_OPTIONS)

check: $(VENV)/.check  ## style and types; the import rules are a test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.check
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(VENV)/.all-tests  ## the parts of docs/ that are generated from the code, and the site, into site/
	$(PIP) --editable '.[docs]'
	$(BIN)/python -m tests.support.docs_generated
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

bench: $(VENV)/.bench  ## side by side with the peers; writes tests/benchmarks/results.md; ONLY="core s3" measures a part
	$(BIN)/python -m tests.benchmarks $(ONLY)

soak: $(VENV)/.all-tests  ## the long ones
	$(BIN)/python -m pytest -m soak tests

wheel: $(VENV)/.run  ## a wheel, and beside it a bill of what an installation takes along
	$(PIP) packaging
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python -m tests.support.sbom dist/*.whl

clean:
	rm -rf $(VENV) build dist site *.egg-info
