# Two commands on a fresh machine: `make demo` and `make test`. Each makes .venv by itself.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test lint long clean help

help:
	@echo "make demo   train a small net on scikit-learn's digits and build it for this CPU under a budget"
	@echo "make test   lint, types and tests"
	@echo "make long   the tests that take minutes"
	@echo "make clean  remove what the demo and the tests left"

# A stamp newer than pyproject.toml means: installed as it says now.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python demo/digits.py

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

long: $(VENV)/.installed
	$(BIN)/python -m pytest -m slow

clean:
	rm -rf .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
