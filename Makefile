# Everything runs from a virtual environment in .venv; `make install` makes it with plain pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: help install demo test test-slow test-stack lint format clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: $(VENV)/.installed  ## make the virtual environment

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev,s3]'
	touch $@

demo: install    ## the whole pipeline on the bundled data and backbone
	$(BIN)/mars demo

test: install    ## the default tests
	$(BIN)/python -m pytest -m 'not slow and not gpu and not stack'

test-slow: install  ## the slow tests
	$(BIN)/python -m pytest -m 'slow and not gpu'

test-stack: install  ## the tests that start real servers
	$(BIN)/python -m pytest -m 'stack and not gpu'

lint: install    ## style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:           ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
