# Every target sets up what it needs; a second run is quick.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= logical
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export BENTOML_DO_NOT_TRACK ?= True

.PHONY: quickstart test test-full lint format clean

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	touch $(STAMP)

quickstart: $(STAMP)  ## photographs, training, export, verification, scoring, service: end to end
	$(BIN)/hqtl-train quickstart

test: $(STAMP)  ## everything that CI runs, lint aside; in the order of the folders, so that the long files do not come last
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-full: $(STAMP)  ## with the tests that take minutes
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) quickstart-out
