# Two commands matter: `make up` and `make test`. Each line below is a plain command that can be run by hand.

SHELL := /bin/sh
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' && echo $$p && break; done)
BIN := .venv/bin
ARGS ?=

# Wheels only come with byte code when somebody compiles them, and a read-only or no-byte-code environment never would:
# without it every start costs two seconds more.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --no-compile

.PHONY: up test bench chaos suites fmt lint lock clean

up: .venv/runtime
	@exec $(BIN)/python manage.py up $(ARGS)

test: .venv/dev
	@exec bash .ci/checks

# Figures beside their baselines; docs/bench.md says how to read them. ARGS="claim --profile claim.txt" measures one.
bench: .venv/dev
	@exec $(BIN)/python -m tests.bench --json .data/bench.json $(ARGS)

# The same faults as in `make test`, at full size: an hour of kills. CHAOS_SEED=2 throws other dice.
chaos: .venv/dev
	@CHAOS=full PYTEST_TIMEOUT=0 exec $(BIN)/python -m pytest -m kill -p no:randomly -s tests/chaos $(ARGS)

# The test suites of real projects as gates, fetched into .data/suites: five minutes, and a network the first time.
suites: .venv/dev
	@PYTEST_TIMEOUT=0 exec $(BIN)/python -m pytest -p no:randomly -s tests/gates/real_suites.py $(ARGS)

fmt: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Writes the two locks; existing versions are kept where the .in files allow. Add `--upgrade` in ARGS for newer ones.
lock: .venv/dev
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --python-version 3.11 $(ARGS) requirements.in -o requirements.txt
	$(BIN)/uv pip compile --universal --generate-hashes --no-header --python-version 3.11 $(ARGS) requirements-dev.in -o requirements-dev.txt

# Takes away what `make up` and `make test` made, except the data directory.
clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .coverage .coverage.* htmlcov

# One that was moved here, or whose Python is gone, is made anew; one that somebody else made here is kept.
ifneq ($(shell .venv/bin/python -c 'print("runs")' 2>/dev/null && grep -ls "$(CURDIR)/.venv/bin" .venv/bin/pip),runs .venv/bin/pip)
.PHONY: .venv/bin/python
endif

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Signalbox needs Python 3.11 or later, and none was found. Install one, or name it: make up PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making .venv with $$($(PYTHON) --version)"
	@rm -rf .venv && $(PYTHON) -m venv .venv

# A half-finished installation leaves no stamp, so the next call goes on with it.
.venv/runtime: requirements.txt | .venv/bin/python
	@echo "Installing requirements.txt (a minute or two, once)"
	@$(INSTALL) -r requirements.txt
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	@touch $@

# The tests' set holds the product's set as well.
.venv/dev: requirements-dev.txt | .venv/bin/python
	@echo "Installing requirements-dev.txt (a minute or two, once)"
	@$(INSTALL) -r requirements-dev.txt
	@$(BIN)/python -m compileall -q -j 0 .venv/lib >/dev/null 2>&1 || true
	@touch $@ .venv/runtime
