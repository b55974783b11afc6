PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt

# Nothing is compiled at the installation, so what is imported must be kept compiled: else each process takes two to three times as long to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo install install-dev test test-network test-slurm test-container lint docs clean

demo: install
	$(BIN)/dgl-scale quickstart

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Two files at a time, in their order: the slow ones are in the middle. The tests of a file share what it sets up, and stay together.
test: install-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# A real Slurm of two nodes on this machine (Debian: slurm-wlm, munge; as root); it ends with the tests.
test-slurm: install-dev
	DGL_TEST_SLURM=1 $(BIN)/python -m pytest -rs tests/cluster/test_slurm.py tests/cluster/test_scripts.py

# Two ranks in two network namespaces: slow, lossy and cut networks (Debian: iproute2; as root); about six minutes.
test-network: install-dev
	DGL_TEST_NETWORK=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rs tests/integration/test_network_faults.py

# The Dockerfile's steps, one by one, in a bare Debian (as root; needs debootstrap): some minutes and some GB.
test-container: install-dev
	DGL_TEST_CONTAINER=1 $(BIN)/python -m pytest tests/cluster/test_container.py

# The documentation as a site, in build/site; warnings are errors.
docs: install-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
