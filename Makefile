PYTHON ?= python3
BIN := .venv/bin

# Processes that run tests; each needs 2 GB.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist loadfile

.PHONY: install demo test test-all reliability lint

install: .venv/ready

.venv/ready: requirements.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt -e ".[dev]"
	touch $@

demo: install  ## on digits: a teacher, a student alone, a distilled student; a table and a picture
	$(BIN)/python tools/demo.py

test: install  ## the short tests, some minutes
	$(BIN)/python -m pytest $(PARALLEL)

test-all: install  ## also the long ones
	EDKD_RELIABILITY=all $(BIN)/python -m pytest $(PARALLEL) -m ""

reliability: install  ## the figures of docs/reliability.md, half an hour
	EDKD_RELIABILITY=full $(BIN)/python -m pytest tests/reliability tests/test_keys.py -m ""

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
