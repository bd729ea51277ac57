# The two commands are `make demo` and `make test`. Both make .venv, install the locked versions and fetch two jars once.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' 2>/dev/null && echo $$p && break; done)

# An index of CPU-only torch wheels spares 4 GB of CUDA libraries: make demo TESSERA_TORCH_INDEX=URL
ifdef TESSERA_TORCH_INDEX
INSTALL = $(BIN)/uv pip install --quiet --index $(TESSERA_TORCH_INDEX) --index-strategy unsafe-best-match \
	--no-verify-hashes --constraint requirements.lock --editable '.[dev]'
else
INSTALL = $(BIN)/uv pip sync --quiet requirements.lock && \
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
endif

.PHONY: demo test check test-all lint lock clean
.DEFAULT_GOAL := demo

demo: $(VENV)/ready
	$(BIN)/tessera run

test: $(VENV)/ready lint
	$(BIN)/python -m pytest -m "not slow" --durations=15

check: $(VENV)/ready lint
	$(BIN)/python -m pytest -q -m "not slow and not spark and not distributed"

test-all: $(VENV)/ready lint
	$(BIN)/python -m pytest --durations=30

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(VENV)/ready
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade --extra dev \
		--custom-compile-command "make lock" --output-file requirements.lock setup.py

clean:
	rm -rf $(VENV) build lakehouse

$(VENV)/ready: requirements.lock setup.py Makefile
	@test -n "$(PYTHON)" || { echo "Tessera wants Python 3.11 or 3.12 on the PATH"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	UV_LINK_MODE=$${UV_LINK_MODE:-hardlink} VIRTUAL_ENV=$(CURDIR)/$(VENV) $(INSTALL)
	$(BIN)/tessera jars
	@touch $@
