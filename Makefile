# `make demo` and `make test` are all a new machine needs: Python 3.11, make, git and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Where these targets write; remove it to start over.
WORK := workdir

.PHONY: help setup demo consortium test check fix simulate tutorial docs bench lock lock-docs clean

help:
	@echo "make demo      sets up and does the main job: three silos' invented messages to a served, private BERT."
	@echo "make consortium trains with three companies' silos in processes of their own, over mutual TLS on this machine."
	@echo "make test      sets up and runs all tests."
	@echo "make check     runs the formatter, the linters (of the code, of who imports whom) and the type checker; changes nothing."
	@echo "make fix       lets the formatter and the linter repair what they can."
	@echo "make tutorial  runs every command of docs/tutorial.md and compares what it prints with the page."
	@echo "make docs      builds the documentation into $(WORK)/site, in an environment of its own; open $(WORK)/site/index.html."
	@echo "make simulate  runs the pipeline under TFF's own executor and locally, and compares the weights (configs/ci.toml)."
	@echo "make bench     times a round beside a plain loop and TFF's executor; fails where a ratio has become much worse."
	@echo "make lock      remakes requirements.lock from requirements.in and requirements.overrides."
	@echo "make lock-docs remakes docs/requirements.lock from docs/requirements.in."
	@echo "make clean     removes .venv, .venv-docs and $(WORK)."

setup: .venv/installed

# The mark is written last, so that an installation that was interrupted is done again.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed, this is %d.%d: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	@echo "installing the locked environment into .venv (some 110 packages, 3.3 GB; once)"
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(WORK)/example/written: .venv/installed examples/customer_messages.py examples/phrases.py
	$(BIN)/python -m examples.customer_messages $(WORK)/example
	touch $@

demo: $(WORK)/example/written
	$(BIN)/tff-pipeline run --config configs/quickstart.toml

consortium: $(WORK)/example/written
	$(BIN)/python -m examples.consortium $(WORK)/consortium

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/pyrefly check

fix: .venv/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

tutorial: .venv/installed
	$(BIN)/python docs/run_tutorial.py

docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

.venv-docs/installed: docs/requirements.lock
	rm -rf .venv-docs
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r docs/requirements.lock
	touch $@

simulate: $(WORK)/example/written
	$(BIN)/python -m examples.simulation

# Real text is used where data/multidogo is there (configs/multidogo.toml says whence). Takes a quarter of an hour.
bench: .venv/installed
	$(BIN)/python -m benchmarks.round --check

# uv resolves with overrides, which pip cannot; it is installed apart and is not part of the environments.
UV_COMPILE = $(WORK)/lock-tools/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

$(WORK)/lock-tools/installed:
	$(PYTHON) -m venv $(WORK)/lock-tools
	$(WORK)/lock-tools/bin/pip install --quiet --disable-pip-version-check uv
	touch $@

lock: $(WORK)/lock-tools/installed
	$(UV_COMPILE) --override requirements.overrides --output-file requirements.lock requirements.in

lock-docs: $(WORK)/lock-tools/installed
	$(UV_COMPILE) --output-file docs/requirements.lock docs/requirements.in

clean:
	rm -rf .venv .venv-docs $(WORK)
