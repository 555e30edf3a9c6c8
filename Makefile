# servd: `make run` serves the fruit stand, `make test` runs the fast tests, `make bench` compares with others.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VENV_MODELS := .venv-models
VENV_RAY := .venv-ray
HTTP_PORT ?= 8000
ADMIN_PORT ?= 52365
STATE_DIR ?= .cache/state
SOAK_MINUTES ?= 10
BENCH ?=

.PHONY: run wheel test compiled shipping test-all test-models test-engine faults soak lint types reference docs bench clean

run: $(VENV)/installed
	@$(BIN)/python tools/quickstart.py --http-port $(HTTP_PORT) --admin-port $(ADMIN_PORT) --state-dir $(STATE_DIR)

# what `pip install` of another project takes: dist/servd_serve-VERSION-py3-none-any.whl
wheel: $(VENV)/bin/python
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/*.whl

# three processes: tests wait for other processes more than they compute
test: $(VENV)/installed-dev compiled
	$(BIN)/python -m pytest -q -m "not long and not models" -n 3 --dist loadfile --no-loadscope-reorder

# processes under test start from compiled code, as those of an installed package do, whatever the environment says of writing it
compiled: $(VENV)/installed-dev
	@$(BIN)/python -m compileall -q servd tests

# what people install and ship: the wheel in an empty environment, behind nginx and Caddy, what `servd init` writes
shipping: $(VENV)/installed-dev compiled
	$(BIN)/python -m pytest -q tests/system/test_wheel.py tests/system/test_behind_proxies.py tests/system/test_new_project.py

test-models: $(VENV_MODELS)/installed
	$(VENV_MODELS)/bin/python -m pytest -q -m models

# against a real Ray, in network namespaces of their own: needs root
test-engine: $(VENV)/installed-dev compiled $(VENV_RAY)/installed
	SERVD_TEST_RAY=$(abspath $(VENV_RAY))/bin $(BIN)/python -m pytest -q tests/engines

test-all: $(VENV)/installed-dev compiled
	$(BIN)/python -m pytest -q -m "not models" -n 2 --dist loadfile --no-loadscope-reorder

faults: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults

soak: $(VENV)/installed-dev
	$(BIN)/python -m tests.faults.soak --minutes $(SOAK_MINUTES)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed-dev
	$(BIN)/mypy
	$(BIN)/mypy --strict tests/typing examples/typed/reviews.py
	$(BIN)/mypy --config-file tests/mypy_plugin/mypy.ini tests/mypy_plugin
	$(BIN)/pyright --pythonpath $(BIN)/python

# pages that are made from the code; apart from the site, so that a test sees those that were not made again
reference: $(VENV)/installed-dev
	$(BIN)/python -m tools.reference

# the site: a link that leads nowhere ends it
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "built .cache/site/index.html"

bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.compare --json .cache/bench.json --picture .cache/bench.png $(BENCH)

clean:
	rm -rf $(VENV) $(VENV_MODELS) $(VENV_RAY) .cache build dist *.egg-info

$(VENV)/bin/python $(VENV_MODELS)/bin/python $(VENV_RAY)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "servd needs Python 3.11 or newer; choose one with PYTHON=..." >&2; exit 1; }
	@# half an environment, as without ensurepip, would pass for a whole one next time
	$(PYTHON) -m venv $(@:/bin/python=) || { rm -rf $(@:/bin/python=); exit 1; }

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-bench: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@ $(VENV)/installed

$(VENV_MODELS)/installed: pyproject.toml | $(VENV_MODELS)/bin/python
	$(VENV_MODELS)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev,models]'
	@touch $@

$(VENV_RAY)/installed: | $(VENV_RAY)/bin/python
	$(VENV_RAY)/bin/python -m pip install --quiet --disable-pip-version-check "ray[serve]==2.60.0" numpy
	@touch $@
