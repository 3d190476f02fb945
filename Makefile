PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test test-all reliability lint

install: .venv/ready

.venv/ready: requirements.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt -e ".[dev]"
	touch $@

demo: install  ## a teacher, a student alone and a student taught, on digits: a table and a picture
	$(BIN)/python tools/demo.py

test: install
	$(BIN)/python -m pytest

test-all: install  ## with the tests that take minutes
	$(BIN)/python -m pytest -m ""

reliability: install  ## the tests of what must not be lost, in full: half an hour; prints the figures of docs/reliability.md
	EDKD_RELIABILITY=full $(BIN)/python -m pytest tests/reliability tests/test_keys.py -m ""

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
