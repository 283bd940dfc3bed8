# Both targets set up everything they need. Hand options to pip with PIP_ARGS="...".
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
DEMO_OUT ?= runs/demo
BIN = $(VENV)/bin
# Two test workers, one thread each: faster than one worker with two threads, and it pins results.
TEST_ENV = OMP_NUM_THREADS=1 MUJOCO_GL=egl

.PHONY: demo test test-slow lint types format clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/pip install --quiet $(PIP_ARGS) -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.installed

# Train a Decision Transformer on the embedded T-Maze data, then ask how far its memory reaches.
demo: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python examples/demo.py --out $(DEMO_OUT)

test: lint types
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -q

test-slow: $(VENV)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -q -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
