# All set-up is here: `make demo` and `make test` work on a fresh machine with Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TOOLS := .venv-tools

# A version without a local suffix, such as +cpu: an index may offer a build without CUDA of it, which pip then takes.
LOCKED_TORCH := 2.13.0

.PHONY: demo test lint lock clean

demo: $(VENV)/.installed
	$(BIN)/stlm-kd distill -r sample-two-teachers --jobs 2

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The newest versions that fit together, for every Python from 3.10 on and every platform.
lock: $(TOOLS)/bin/uv
	echo torch==$(LOCKED_TORCH) | $(TOOLS)/bin/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.10 \
		--all-extras --constraint - --custom-compile-command 'make lock' --no-annotate --output-file requirements.lock

$(TOOLS)/bin/uv:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet uv

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml requirements.lock
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable .
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml requirements.lock
	$(BIN)/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
