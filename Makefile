# All set-up is here: `make demo` and `make test` work on a fresh machine with Python 3.10 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TOOLS := .venv-tools

# A version without a local suffix, such as +cpu: an index may offer a build without CUDA of it, which pip then takes.
LOCKED_TORCH := 2.13.0

# What rests on the libraries: families, capabilities, a run through the commands, scores. SHORT=1 takes the first list alone.
SHORT_LANE := capabilities families forward blocks observing mobillama diito_identities tracking eval_choices eval_lm_eval_model \
	eval_harness eval_perplexity cache_files data_sources engine_deepspeed road_distill
LONG_LANE := compute attention_maps models models_incoming run_hub_identity data_tables attributions cli_commands road_scores
COMPAT_TESTS = $(foreach name,$(SHORT_LANE) $(if $(SHORT),,$(LONG_LANE)),$(wildcard tests/*/test_$(name).py tests/unit/*/test_$(name).py))
COMPAT_TORCH = $(if $(SHORT),$(LOCKED_TORCH))
RESOLUTION_lowest := lowest-direct
RESOLUTION_newest := highest

.PHONY: demo test test-fast test-long test-matrix fuzz test-gpu lint audit lock pins release compat compat-lowest compat-newest clean \
	compat-lowest-environment compat-newest-environment

demo: $(VENV)/.installed
	$(BIN)/stlm-kd distill -r sample-two-teachers --jobs 2

# The unit tests alone.
test-fast: $(VENV)/.installed-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n 2 --dist loadfile tests/unit

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n 2 --dist loadfile

# What takes minutes and repeats in more forms what `make test` shows in one.
test-long: $(VENV)/.installed-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n 2 --dist loadfile -m long

# All of the grid whose pairs `make test` covers: processes, engine, split, optimizer, task, objectives, placement. Hours; it may be
# stopped, and goes on with the cells that this program has not been through.
test-matrix: $(VENV)/.installed-dev
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m tests.support.matrix build/matrix

# Inputs that were changed at random: FUZZ times as many as in `make test-long`.
FUZZ ?= 10
fuzz: $(VENV)/.installed-dev
	STLM_KD_FUZZ=$(FUZZ) OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -q -n 2 -m "long or not long" tests/fuzz

# Says so where there is no GPU; STLM_KD_TEST_DEVICE=cpu rehearses the same tests without one.
test-gpu: $(VENV)/.installed-dev
	@$(BIN)/python -c "import torch; print('GPU:', torch.cuda.get_device_name() if torch.cuda.is_available() else 'none; nothing runs on one')"
	$(BIN)/python -m pytest -q -rs tests/slow/test_gpu.py

# The commits at which the built-in suites read their data sets (stlm_kd/eval/pins.json): those of the Hub's main branches now.
pins: $(VENV)/.installed
	$(BIN)/python -m stlm_kd.eval.pins

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The lowest and the newest versions of the declared ranges, each in an environment of its own. COMPAT_TORCH=2.13.0 takes that
# torch in both, since its other builds are gigabytes. Old releases may warn of what newer ones of others deprecate.
compat: compat-lowest compat-newest

compat-lowest compat-newest: compat-%: compat-%-environment
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} .venv-compat-$*/bin/python -m pytest -q -n 2 --dist loadfile \
		-W default::DeprecationWarning $(COMPAT_TESTS)

# Made anew each time, unless REUSE=1: the ranges say what is installed, and their newest versions change.
compat-lowest-environment compat-newest-environment: compat-%-environment: $(TOOLS)/bin/uv
	$(if $(REUSE),test -x .venv-compat-$*/bin/pytest || )$(MAKE) --no-print-directory .venv-compat-$*

.PHONY: .venv-compat-lowest .venv-compat-newest
.venv-compat-lowest .venv-compat-newest: .venv-compat-%:
	rm -rf $@
	$(PYTHON) -m venv $@
	$(if $(COMPAT_TORCH),$@/bin/python -m pip install --quiet --no-deps torch==$(COMPAT_TORCH))
	echo '$(COMPAT_TORCH:%=torch==%)' | $(TOOLS)/bin/uv pip install --quiet --python $@/bin/python \
		--resolution $(RESOLUTION_$*) --constraint - --editable '.[dev]'

# The wheel of the commit that is tagged v<version>, and dist/SHA256SUMS. ALLOW_DIRTY=1 rehearses it with any commit; changes
# that are not committed are left out of it.
release: $(VENV)/.installed-dev
	$(BIN)/python .ci/release.py $(if $(ALLOW_DIRTY),--allow-dirty)

# The newest versions that fit together, for every Python from 3.10 on and every platform.
lock: $(TOOLS)/bin/uv
	echo torch==$(LOCKED_TORCH) | $(TOOLS)/bin/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.10 \
		--all-extras --constraint - --custom-compile-command 'make lock' --no-annotate --output-file requirements.lock
	grep -E "^($$(sed -n '/^dependencies/,/^]/s/^ *"\([A-Za-z0-9-]*\).*/\1/p' pyproject.toml | paste -sd'|'))==" requirements.lock \
		> stlm_kd/doctor/tested.txt

# What bandit finds in the code from medium severity on, and what is known of the locked versions, which needs pypi.org.
audit: $(TOOLS)/bin/pip-audit
	$(TOOLS)/bin/bandit --quiet --severity-level medium --recursive stlm_kd cli eval recipes .ci
	$(TOOLS)/bin/python .ci/audit.py

$(TOOLS)/bin/python:
	$(PYTHON) -m venv $(TOOLS)

$(TOOLS)/bin/uv: | $(TOOLS)/bin/python
	$(TOOLS)/bin/python -m pip install --quiet uv

$(TOOLS)/bin/pip-audit: | $(TOOLS)/bin/python
	$(TOOLS)/bin/python -m pip install --quiet bandit==1.9.4 pip-audit==2.10.1

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
