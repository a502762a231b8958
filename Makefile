# Two commands do everything: `make demo` (the whole way on one CPU machine) and `make test`.
# pip's own environment variables (index, extra index, find-links) are honoured, so a site chooses its torch build.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

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

# The data half runs one test on each core; a training test takes all cores for itself.
test: lint
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile tests/data_tools tests/test_docs.py tests/test_readme_chinese.py
	$(BIN)/python -m pytest -m "not slow" tests/training tests/cluster tests/test_real_data.py

test-all: lint
	$(BIN)/python -m pytest -n auto --dist loadfile tests/data_tools tests/test_docs.py tests/test_readme_chinese.py
	$(BIN)/python -m pytest tests/training tests/cluster tests/test_real_data.py

soak: install
	$(BIN)/python -m tests.soak --kills 40

bench: install
	$(BIN)/python benchmarks/data.py
	$(BIN)/python benchmarks/train.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
