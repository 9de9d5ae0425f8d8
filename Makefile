# Needs GNU make (3.81 or newer) and Python >= 3.10; everything is installed into .venv.

PYTHON ?= python3
DEMO_ARGS ?=
TESTARGS ?=
BENCH_ARGS ?=
UVARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

# A stamp says that an installation is done, and is older than what it followed from when that
# changes.
RUN_STAMP := $(VENV)/.installed-run
TEST_STAMP := $(VENV)/.installed-test
DEV_STAMP := $(VENV)/.installed-dev
REQUIREMENTS := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-versions bench check format constraints clean

help:  ## print this
	@echo 'make TARGET, where TARGET is one of:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' Makefile
	@echo 'PYTHON=python3.12 makes .venv with another Python than python3.'

demo: $(RUN_STAMP)  ## cross-validate on the built-in data, into runs/demo (DEMO_ARGS='--epochs 20')
	$(PY) -m raykfold.run --demo --epochs 10 --model_dir runs/demo $(DEMO_ARGS)

test: $(TEST_STAMP)  ## run the tests, without the slow ones (TESTARGS='-k shares')
	$(PY) -m pytest $(TESTARGS)

test-slow: $(TEST_STAMP)  ## run the slow tests
	$(PY) -m pytest -m slow $(TESTARGS)

test-versions: $(TEST_STAMP)  ## try other versions of Ray, of the Hub's client and of W&B
	$(PY) tests/versions.py $(TESTARGS)

bench: $(TEST_STAMP)  ## time whole runs against a plain loop (BENCH_ARGS='--processed_dir data/fsdd')
	$(PY) tests/benchmarks/speed.py $(BENCH_ARGS)

check: $(DEV_STAMP)  ## check format, lint and types
	$(PY) -m ruff format --check
	$(PY) -m ruff check
	$(PY) -m mypy raykfold tests

format: $(DEV_STAMP)  ## rewrite the code as `make check` wants it
	$(PY) -m ruff format
	$(PY) -m ruff check --fix

# One file for every Python: where a release has left the oldest behind, both have a line. Versions that
# stand there stay, unless pyproject.toml asks for others. The newest uv is put into the environment.
constraints: | $(VENV)/bin/pip  ## write constraints.txt as pyproject.toml asks (newest versions: UVARGS=--upgrade)
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip compile --quiet --universal --python-version 3.10 --extra dev \
	  --annotation-style line --custom-compile-command 'make constraints' $(UVARGS) \
	  --output-file constraints.txt pyproject.toml

clean:  ## remove caches and builds; .venv, data and runs stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
	find raykfold tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv puts there, so with it the environment is whole.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "make: raykfold needs Python >= 3.10, and '$(PYTHON)' is" \
	    "$$($(PYTHON) --version 2>/dev/null || echo 'not there');" \
	    "name one that will do: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

# Of two targets, `make test` after `make demo` adds what the tests need and no more; what is
# installed for one is there for those that need less.
$(RUN_STAMP): $(REQUIREMENTS) | $(VENV)/bin/pip
	@echo 'Installing raykfold into $(VENV) (PyTorch and Ray are large: minutes, the first time)'
	$(INSTALL) -e .
	@touch $@

$(TEST_STAMP): $(REQUIREMENTS) | $(VENV)/bin/pip
	@echo 'Installing what the tests need into $(VENV) (minutes, the first time)'
	$(INSTALL) -e '.[test]'
	@touch $(RUN_STAMP) $@

$(DEV_STAMP): $(REQUIREMENTS) | $(VENV)/bin/pip
	@echo 'Installing what the checks and tests need into $(VENV) (minutes, the first time)'
	$(INSTALL) -e '.[dev]'
	@touch $(RUN_STAMP) $(TEST_STAMP) $@
