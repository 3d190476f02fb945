PYTHON ?= python3
BIN := .venv/bin

# Processes that run tests; each needs 2 GB. Threads of several processes wait for one another.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
PYTEST += --no-loadscope-reorder

.PHONY: install demo test test-all reliability gpu gpu-bundle lint docs docs-serve

install: .venv/ready

.venv/ready: requirements.txt setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check -r requirements.txt -e ".[dev]"
	touch $@

demo: install  ## on digits: a teacher, a student alone, a distilled student; a table and a picture
	$(BIN)/python tools/demo.py

test: install  ## the short tests, some minutes
	$(PYTEST)

test-all: install  ## also the long ones
	EDKD_RELIABILITY=all $(PYTEST) -m ""

reliability: install  ## the figures of docs/reliability.md, half an hour
	EDKD_RELIABILITY=full $(BIN)/python -m pytest tests/reliability tests/test_keys.py -m ""

gpu:  ## proves the GPU path on a machine with CUDA; installs nothing, see docs/performance.md
	$(PYTHON) benchmarks/gpu.py

gpu-bundle: install  ## the packages that `make gpu` may lack there, as wheels in .wheels/
	$(BIN)/python benchmarks/gpu.py --bundle .wheels

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The package of the theme prints a note about its successor unless this is set.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs

docs: install  ## the documentation site, in site/; a warning is an error
	$(MKDOCS) build --strict

docs-serve: install  ## the same on http://127.0.0.1:8000, built anew after each change
	$(MKDOCS) serve
