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

.PHONY: demo test check test-all cluster-test connect-test interop interop-lock bench-shard bench-prepare bench-prepare-lock bench-train bench-train-lock bench-evaluation bench-evaluation-lock archive tools wheel gpu-kit lint lock clean
.DEFAULT_GOAL := demo

demo: $(VENV)/ready
	$(BIN)/tessera run

test: $(VENV)/ready tools lint archive
	$(BIN)/python -m pytest -m "not slow" --durations=15 -n 2 --dist loadfile

check: $(VENV)/ready lint
	$(BIN)/python -m pytest -q -m "not slow and not spark and not distributed"

test-all: $(VENV)/ready tools lint archive
	$(BIN)/python -m pytest --durations=30 -n 2 --dist loadfile

# A Spark master and two workers on loopback; ranks on both, killed and recovered. All processes end with the tests.
cluster-test: $(VENV)/ready
	$(BIN)/python -m pytest -v tests/cluster/test_cluster.py

# Every room over a Spark Connect server; nine minutes.
connect-test: $(VENV)/ready
	$(BIN)/python -m pytest -v tests/cluster/test_connect.py

# Other readers and writers of MDS (mosaicml-streaming, LitData) beside ours, in an environment of their own, .venv-interop.
interop: $(VENV)/ready .venv-interop/ready
	TESSERA_STREAMING_PYTHON=$(CURDIR)/.venv-interop/bin/python $(BIN)/python -m pytest -v tests/interop tests/shard/test_mds.py

interop-lock: $(VENV)/ready
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make interop-lock" --output-file tests/interop/requirements.txt tests/interop/requirements.in

# Spark then starts in half the time, which many tests do in processes of their own. Some Javas can make none.
archive: $(VENV)/ready
	-$(BIN)/tessera jars --archive

# What some tests want beside Python: a browser for the map, a PostgreSQL server. Without them those tests are skipped.
tools:
	@missing=""; command -v chromium >/dev/null || missing="chromium"; \
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$$missing postgresql"; \
	if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing) \
			>/dev/null 2>&1 || echo "could not install:$$missing; the tests that want them are skipped"; \
	elif [ -n "$$missing" ]; then echo "not installed:$$missing; the tests that want them are skipped"; fi

wheel: $(VENV)/ready
	rm -rf build && $(BIN)/uv build --quiet --wheel --no-build-isolation --python $(BIN)/python

gpu-kit: $(VENV)/ready
	$(BIN)/python benchmarks/gpu/kit.py

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(VENV)/ready
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade --extra dev \
		--custom-compile-command "make lock" --output-file requirements.lock setup.py

# The table of the shard room in benchmarks/README.md, about half an hour on a machine that has nothing else to do.
bench-shard: $(VENV)/ready .venv-interop/ready
	$(BIN)/python benchmarks/shard/tokenizing.py
	$(BIN)/python benchmarks/shard/tokenizing.py --long 50
	$(BIN)/python benchmarks/shard/writing.py
	$(BIN)/python benchmarks/shard/writing.py --increments 100
	$(BIN)/python benchmarks/shard/reader.py

# The tables of prepare in benchmarks/README.md, beside datatrove in an environment of its own, .venv-datatrove.
bench-prepare: $(VENV)/ready .venv-datatrove/ready
	$(BIN)/python benchmarks/prepare/filters.py
	$(BIN)/python benchmarks/prepare/near_duplicates.py
	$(BIN)/python benchmarks/prepare/private.py

bench-prepare-lock: $(VENV)/ready
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make bench-prepare-lock" --output-file benchmarks/prepare/requirements.txt \
		benchmarks/prepare/requirements.in

# Time to the same loss beside Hugging Face Trainer, which runs in an environment of its own, .venv-trainer: an hour, of
# a small model. BENCH_TRAIN= measures a million parameters, for a day; stopped and started again, it goes on.
BENCH_TRAIN ?= --quick

bench-train: $(VENV)/ready .venv-trainer/ready
	$(BIN)/python benchmarks/train/cells.py $(BENCH_TRAIN)
	$(BIN)/python benchmarks/train/recovery.py

# Scores and speed beside lm-evaluation-harness, which runs in an environment of its own, .venv-lm-eval; the model is
# that of `make demo`.
bench-evaluation: demo .venv-lm-eval/ready
	$(BIN)/python benchmarks/evaluation/beside_lm_eval.py $$(ls -d lakehouse/runs/*/checkpoints/step-* | tail -1) --limit 1000

bench-evaluation-lock: $(VENV)/ready
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make bench-evaluation-lock" --output-file benchmarks/evaluation/requirements.txt \
		benchmarks/evaluation/requirements.in

bench-train-lock: $(VENV)/ready
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
		--custom-compile-command "make bench-train-lock" --output-file benchmarks/train/requirements.txt \
		benchmarks/train/requirements.in

clean:
	rm -rf $(VENV) .venv-interop .venv-datatrove .venv-trainer .venv-lm-eval build lakehouse

$(VENV)/ready: requirements.lock setup.py Makefile
	@test -n "$(PYTHON)" || { echo "Tessera wants Python 3.11 or 3.12 on the PATH"; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	UV_LINK_MODE=$${UV_LINK_MODE:-hardlink} VIRTUAL_ENV=$(CURDIR)/$(VENV) $(INSTALL)
	$(BIN)/tessera jars
	@touch $@

.venv-interop/ready: tests/interop/requirements.txt $(VENV)/ready
	$(PYTHON) -m venv --clear .venv-interop
	UV_LINK_MODE=$${UV_LINK_MODE:-hardlink} VIRTUAL_ENV=$(CURDIR)/.venv-interop $(BIN)/uv pip sync --quiet tests/interop/requirements.txt
	@touch $@

.venv-datatrove/ready: benchmarks/prepare/requirements.txt $(VENV)/ready
	$(PYTHON) -m venv --clear .venv-datatrove
	UV_LINK_MODE=$${UV_LINK_MODE:-hardlink} VIRTUAL_ENV=$(CURDIR)/.venv-datatrove $(BIN)/uv pip sync --quiet benchmarks/prepare/requirements.txt
	@touch $@

.venv-lm-eval/ready: benchmarks/evaluation/requirements.txt $(VENV)/ready
	$(PYTHON) -m venv --clear .venv-lm-eval
	UV_LINK_MODE=$${UV_LINK_MODE:-hardlink} VIRTUAL_ENV=$(CURDIR)/.venv-lm-eval $(BIN)/uv pip sync --quiet benchmarks/evaluation/requirements.txt
	@touch $@

.venv-trainer/ready: benchmarks/train/requirements.txt $(VENV)/ready
	$(PYTHON) -m venv --clear .venv-trainer
	UV_LINK_MODE=$${UV_LINK_MODE:-hardlink} VIRTUAL_ENV=$(CURDIR)/.venv-trainer $(BIN)/uv pip sync --quiet benchmarks/train/requirements.txt
	@touch $@
