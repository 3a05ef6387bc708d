# One command each, on a fresh machine with Python 3.11 or later: the virtual environment is made when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# For each fuzzer of tests/fuzz/fuzzers.txt.
FUZZ_SECONDS ?= 60

.PHONY: demo test nightly lint bench fuzz clean

demo: $(VENV)/.demo
	@$(BIN)/varstore-companion demo

test: lint
	@$(BIN)/pytest

nightly: $(VENV)/.test
	@$(BIN)/python -I tests/killing/run.py

lint: $(VENV)/.test
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

bench: $(VENV)/.test
	@$(BIN)/python -I tests/benchmarks/run.py

fuzz: $(VENV)/.fuzz
	@$(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[demo]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@ $(VENV)/.demo

$(VENV)/.fuzz: pyproject.toml | $(VENV)/bin/python
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@touch $@ $(VENV)/.test $(VENV)/.demo
