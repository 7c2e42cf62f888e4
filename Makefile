# On a machine with Python 3.11+, pip and make, each target is the only command needed.
PYTHON ?= python3
BIN := .venv/bin
# Test files at a time.
JOBS ?= 2
.DEFAULT_GOAL := help
.PHONY: help install demo lint types test test-all chaos bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

# The stamp makes a second call instant; a change of the dependencies installs again.
.venv/stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "latentmill needs Python 3.11 or newer, this is " + sys.version)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: .venv/stamp ## make .venv and install, once

demo: install ## a minute of real video through the whole stream
	$(BIN)/python -m jobs.demo

lint: install ## ruff: style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## mypy, strict
	$(BIN)/mypy

test: install ## the suite: six minutes on two cores
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-all: install ## the long ones too
	$(BIN)/python -m pytest -m 'slow or not slow'

chaos: install ## at least 100 seeded kills, and a table of what they cost
	$(BIN)/python -m tests.chaos
	$(BIN)/python -m tests.chaos --job text --kills 40

bench: install ## every benchmark, as ratios
	$(BIN)/python -m jobs.bench all

clean: ## everything that was built
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	[ ! -e demo/.made-by-latentmill-demo ] || rm -rf demo
