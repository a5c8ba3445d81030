# Everything a person or a CI job runs. Each target makes what it needs; a stamp file in .venv says
# what has been installed, and is renewed when pyproject.toml changes.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check install --quiet
OUT    ?= stockpot-demo

# Installed first and by its exact version: left open, several dependencies would pull the CUDA build.
TORCH  := torch==2.13.0

.DEFAULT_GOAL := help
.PHONY: help demo test test-oldest test-elsewhere check docs bench release format clean

help:
	@echo "make demo    the whole method on real handwriting, into $(OUT)/"
	@echo "make test    every test, with coverage"
	@echo "make test-oldest     the same on the lowest versions that pyproject.toml allows"
	@echo "make test-elsewhere  files and commands with what Windows and macOS lack taken away"
	@echo "make check   formatting, lint, types, documentation"
	@echo "make docs    the documentation, into site/"
	@echo "make bench   averaging against mergekit, a plain loop, and the disk"
	@echo "make release archive and wheels into dist/, checked; uploads nothing"
	@echo "make format  rewrite the code in the house format"
	@echo "make clean   remove what the other targets made"

demo: $(VENV)/.core
	$(BIN)/stockpot demo -o $(OUT) $(ARGS)

# Processes of one thread each: the suite is many small models, for which more threads only get in
# each other's way. Three, since tests wait for programs, servers and pip for a third of their time.
test: $(VENV)/.dev
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --cov --cov-report=term $(ARGS)

# torch of the lowest version comes from PyPI with CUDA (about 6 GB). For a smaller one:
# make test-oldest OLDEST_TORCH=torch==2.13.0 TESTS=tests/cli
OLDEST := .venv-oldest
OLDEST_TORCH ?=
TESTS ?=
test-oldest: $(OLDEST)/.installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist loadfile $(TESTS) $(ARGS)

$(OLDEST)/.installed: pyproject.toml scripts/oldest.py
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python scripts/oldest.py $(OLDEST_TORCH) > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet -r $(OLDEST)/requirements.txt
	$(OLDEST)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --editable .
	@touch $@

# What is the same everywhere is not tested twice: the file layer, and commands that read and write.
ELSEWHERE := tests/io tests/formats/test_output.py tests/formats/test_folder.py tests/formats/test_sidefiles.py \
  $(patsubst %,tests/cli/test_%.py,average inspect verify compress output interpolate)
test-elsewhere: $(VENV)/.dev
	$(MAKE) --no-print-directory -j 2 --output-sync test-as-windows test-as-macos

# One process each: what is taken away is taken from the process that pytest runs in. And a place for
# temporary files each: what is locked as on Windows is not locked for the other process, which would
# clear it up.
test-as-%: $(VENV)/.dev
	place=$$(mktemp -d) && { \
	  TMPDIR=$$place STOCKPOT_TESTS_AS=$* OMP_NUM_THREADS=1 \
	    $(BIN)/python -m pytest -q -p no:cacheprovider $(ELSEWHERE) $(ARGS); \
	  status=$$?; rm -rf "$$place"; exit $$status; }

release: $(VENV)/.dev
	$(BIN)/python scripts/release.py

# Not --quiet: mkdocs would then neither show nor count its warnings.
check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python scripts/command_reference.py --check
	$(BIN)/python scripts/api_reference.py --check
	$(BIN)/python scripts/formats_table.py --check
	$(BIN)/python -m mkdocs build --strict --site-dir build/site-check

docs: $(VENV)/.dev
	$(BIN)/python scripts/command_reference.py
	$(BIN)/python scripts/api_reference.py
	$(BIN)/python scripts/formats_table.py
	$(BIN)/python -m mkdocs build --strict --site-dir site

bench: $(VENV)/.core
	$(BIN)/python benchmarks/average.py $(ARGS)

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(OLDEST) site build dist .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)"
	@touch $@

$(VENV)/.core: $(VENV)/.torch pyproject.toml hatch_build.py src/stockpot/tensors/sums.c
	$(PIP) --editable ".[demo]" "$(TORCH)"
	@touch $@

$(VENV)/.dev: $(VENV)/.core pyproject.toml
	$(PIP) --editable ".[dev]" "$(TORCH)"
	@touch $@
