# Every target makes what it needs: a virtual environment in .venv, and, as root on Debian, the
# apt packages. `make demo` and `make test` are the two commands of the README.
PYTHON ?= python3
BIN := .venv/bin
TORCH ?= torch==2.13.0

.PHONY: setup demo docs test test-all test-clients lint soak fuzz bench clean

setup: .venv/.ready system image

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "drawloom needs Python 3.11 or newer: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "install the venv module: apt-get install python3-venv"; exit 1; }
	@# torch first: some hosts serve a CPU build of exactly this version
	$(BIN)/pip install -q --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: system
system: .venv/.ready
	@bash .ci/system

.PHONY: image
image: .venv/.ready system
	@$(BIN)/python -m drawloom.sandbox.docker.demo_image

demo: setup
	$(BIN)/drawloom demo $(ARGS)

# a worker more than cores, since some tests wait for processes; a file's tests share its fixtures
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 3 ? cores + 1 : 4)))
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test: setup
	$(PYTEST) -m "not slow" $(ARGS)

test-all: setup
	$(PYTEST) --hypothesis-profile=full --timeout 900 $(ARGS)

test-clients: .venv/.ready
	$(BIN)/python tests/clients/run.py $(ARGS)

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: setup
	$(BIN)/python tests/soak.py $(ARGS)

fuzz: setup
	$(BIN)/python tests/fuzz_server.py $(ARGS)

bench: setup
	$(BIN)/drawloom bench engine --device cpu $(ARGS)

docs: .venv/.ready
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "docs: open build/site/index.html"

clean:
	rm -rf .venv build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo.html demo.png
