# `make bench`: the experiment `quick`, from nothing to its report. `make test`: the tests; `make test-all`: those that take
# long as well. All make .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Processes that test: one more than two cores, as the tests of `run` wait for workers of their own.
WORKERS ?= 3

.PHONY: bench test test-all lint clean

bench: .venv/installed
	$(BIN)/python run_bench.py run quick
	$(BIN)/python run_bench.py report quick

test: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow"

test-all: .venv/installed
	$(BIN)/python -m pytest -n $(WORKERS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/mypy algorithms suites bench analysis run_bench.py

.venv/installed: requirements.lock
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0 $(TORCH_INDEX)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

clean:
	rm -rf .venv
