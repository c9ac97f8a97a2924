# `make demo` and `make test` are all a new machine needs: Python 3.11, make, git and a package index.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Where these targets write; remove it to start over.
WORK := workdir

.PHONY: help setup demo test check fix simulate bench lock clean

help:
	@echo "make demo      set up, then the main job: three silos' invented messages to a served, private BERT"
	@echo "make test      set up, then all tests"
	@echo "make check     formatter, linter, type checker"
	@echo "make fix       let formatter and linter repair what they can"
	@echo "make simulate  the pipeline under TFF's own executor and again locally, compared (configs/ci.toml)"
	@echo "make bench     a round's time beside a plain loop's and TFF's executor's; fails where a ratio has become much worse"
	@echo "make lock      remake requirements.lock from requirements.in and requirements.overrides"
	@echo "make clean     remove .venv and $(WORK)"

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

test: .venv/installed
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: .venv/installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyrefly check

fix: .venv/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

simulate: $(WORK)/example/written
	$(BIN)/python -m examples.simulation

# Real text is used where data/multidogo is there (configs/multidogo.toml says whence). Takes a quarter of an hour.
bench: .venv/installed
	$(BIN)/python -m benchmarks.round --check

# uv resolves with overrides, which pip cannot; it is installed aside and is not part of the environment.
lock:
	$(PYTHON) -m venv $(WORK)/lock-tools
	$(WORK)/lock-tools/bin/pip install --quiet --disable-pip-version-check uv
	$(WORK)/lock-tools/bin/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --override requirements.overrides --output-file requirements.lock requirements.in

clean:
	rm -rf .venv $(WORK)
