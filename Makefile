# Two commands do everything: `make demo` (the whole way on one CPU machine) and `make test`.
# pip's own environment variables (index, extra index, find-links) are honoured, so a site chooses its torch build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SIDE_BY_SIDE := -n auto --dist loadfile --no-loadscope-reorder

.PHONY: install demo test test-all soak lint format bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python examples/quickstart/run.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One test on each core; those that count seconds, and those of Slurm, have all cores for themselves.
test: lint
	$(BIN)/python -m pytest -m "not slow and not alone" $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -m "not slow and alone"

test-all: lint
	$(BIN)/python -m pytest -m "not alone" $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -m alone

soak: install
	$(BIN)/python -m tests.soak --kills 40

bench: install
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/train.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
