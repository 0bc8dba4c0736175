# Everything runs from a virtual environment in .venv; `make install` makes it: PyTorch by pip, the rest by uv, which takes
# half a minute where pip takes four.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Where PyTorch comes from: the CPU build. Linux's build on PyPI is for CUDA and takes 4 GB more. For a GPU, for example:
# make install TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Two processes for the default tests: each takes up to 3 GB, so that more is for who knows that their machine has it:
# make test TEST_PROCESSES=4
TEST_PROCESSES ?= 2
TEST_OPTIONS ?=
PIP := $(BIN)/pip install --disable-pip-version-check --quiet --constraint constraints.txt
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt

# Where an image sets it, every process of the tests would compile all that it imports anew: three times the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install demo test test-slow test-stack test-lowest lint docs audit licences sbom format clean

help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

install: $(VENV)/.installed  ## make the virtual environment

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes"
	$(PIP) --no-compile --no-deps --retries 1 --timeout 15 --index-url $(TORCH_INDEX) torch \
	    || echo "note: $(TORCH_INDEX) cannot be reached: PyTorch comes from the default index"
	$(PIP) uv
	$(UV) --editable '.[demo,dev,docs,s3]'
	touch $@

demo: install    ## the whole pipeline on the bundled data and backbone
	$(BIN)/mars demo

test: install    ## the default tests
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal -m 'not slow and not gpu and not stack' $(TEST_OPTIONS)

test-slow: install  ## the slow tests
	$(BIN)/python -m pytest -m 'slow and not gpu'

test-stack: install  ## the tests that start real servers
	$(BIN)/python -m pytest -m 'stack and not gpu'

# Of each dependency the lowest version that pyproject.toml allows; what those need in turn is the newest.
LOWEST := $(VENV)-lowest
LOWEST_TORCH := $(shell sed -n 's/.*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
LOWEST_TESTS ?= tests/mars_core/laws tests/mars_core/metrics tests/mars_core/models/test_lora.py \
    tests/mars_core/models/test_partition.py tests/mars_core/packing/test_packed_equals_separate.py \
    tests/tasks/tracking/test_stores.py tests/flows/test_laws_command.py tests/flows/test_study.py

test-lowest:     ## a selection of the tests with the lowest versions that pyproject.toml allows
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --disable-pip-version-check --quiet uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --index-url $(TORCH_INDEX) --no-deps torch==$(LOWEST_TORCH) \
	    || echo "note: $(TORCH_INDEX) cannot be reached: PyTorch comes from the default index"
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
	    'pytest>=8.3' 'hypothesis>=6.120' --editable '.[demo,s3]'
	$(LOWEST)/bin/python -m pytest -m 'not slow and not gpu and not stack' $(LOWEST_TESTS) $(TEST_OPTIONS)

lint: install    ## style, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: install    ## the documentation as a site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Tools of their own environment: what they need must not decide what is audited.
AUDIT := $(VENV)-audit
AUDITED := --requirement constraints.txt --no-deps --disable-pip

$(AUDIT)/.installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --disable-pip-version-check --quiet pip-audit pip-licenses
	touch $@

audit: $(AUDIT)/.installed  ## known vulnerabilities of the pinned packages; fails where it cannot ask
	$(AUDIT)/bin/pip-audit $(AUDITED) --strict --progress-spinner off

sbom: $(AUDIT)/.installed  ## the pinned packages as CycloneDX, into sbom.json
	$(AUDIT)/bin/pip-audit $(AUDITED) --progress-spinner off --format cyclonedx-json --output sbom.json

licences: install $(AUDIT)/.installed  ## licences of what is installed, as a table
	$(AUDIT)/bin/pip-licenses --python $(BIN)/python --format markdown --order license

format: install  ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:           ## remove the virtual environment and caches
	rm -rf $(VENV) $(VENV)-lowest $(AUDIT) sbom.json site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
