# Every command a person needs. Each target sets up what it needs first.
#
#   make train                                      the main job: a GPT on the Python standard library
#   make train CONFIG=configs/gpt/tiny.py ARGS="--config.optim.learning_rate=1e-3"
#   make test                                       lint, types, the default test suite

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python of a version that is tested; PYTHON=... chooses another.
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo "$$p" && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
CONFIG ?= configs/gpt/tiny.py
# runs/tiny for the default config, runs/bert-tiny_pretrain for configs/bert/tiny_pretrain.py:roberta.
FILE := $(basename $(firstword $(subst :, ,$(CONFIG))))
NAME := $(if $(filter configs/%,$(FILE)),$(subst /,-,$(patsubst configs/%,%,$(FILE))),$(notdir $(FILE)))
TOPOLOGY ?= v5e:4x4
WORKDIR ?= runs/$(patsubst gpt-%,%,$(NAME))
ARGS ?=
WORKERS ?= 2

# Transparent huge pages for glibc's heap: about 4% of a CPU step. Harmless elsewhere.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: help
help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: setup
setup: $(VENV)/run.stamp  ## make .venv and install from requirements.lock

$(VENV)/python.stamp:
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: no Python 3.11 or 3.12 found; install one, or name it with: make PYTHON=/path/to/python3.11" >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/run.stamp: $(VENV)/python.stamp requirements.lock setup.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp requirements-test.lock requirements-test-nodeps.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-test.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-test-nodeps.lock
	@touch $@

$(VENV)/docs.stamp: $(VENV)/run.stamp requirements-docs.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	@touch $@

# Apart from the rest: a process that finds libtpu installed looks for a TPU.
$(VENV)/tpu.stamp: $(VENV)/python.stamp requirements-tpu.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/tpu -r requirements-tpu.lock
	@touch $@

.PHONY: train
train: setup  ## train CONFIG (configs/gpt/tiny.py) in WORKDIR (runs/tiny) with ARGS; resumes a run in that folder
	$(BIN)/python -m experiments.train --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

.PHONY: generate
generate: setup  ## generate text from WORKDIR; ARGS='--prompt="def main"'
	$(BIN)/python -m experiments.generate --workdir=$(WORKDIR) $(ARGS)

.PHONY: evaluate
evaluate: setup  ## loss and bits per byte of WORKDIR; ARGS=--split=test
	$(BIN)/python -m experiments.evaluate --workdir=$(WORKDIR) $(ARGS)

.PHONY: tpu
tpu: setup $(VENV)/tpu.stamp  ## install libtpu, which compiles for TPUs on any machine

.PHONY: plan
plan: tpu  ## plan CONFIG for TOPOLOGY (v5e:4x4): memory, communication, time; ARGS=--search ranks the tables that fit
	$(BIN)/python -m experiments.plan --config=$(CONFIG) --topology=$(TOPOLOGY) $(ARGS)

.PHONY: test
test: $(VENV)/test.stamp lint types  ## lint, types and the fast tests
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

TPU := JAXNLP_LIBTPU=$(abspath $(VENV))/tpu/libtpu/libtpu.so

.PHONY: test-ci
test-ci: $(VENV)/test.stamp $(VENV)/tpu.stamp lint types  ## what CI runs: the fast tests, and slow ones that the change touches or whose turn it is
	$(BIN)/python -m pytest tests/docs_figures.py
	$(TPU) $(BIN)/python -m pytest -m "not full" --ci -n $(WORKERS) $(ARGS)

.PHONY: test-slow
test-slow: $(VENV)/test.stamp $(VENV)/tpu.stamp  ## all slow tests; some compile for TPUs, on any machine
	$(TPU) $(BIN)/python -m pytest -m "slow and not full" -n $(WORKERS) $(ARGS)

.PHONY: test-all
test-all: $(VENV)/test.stamp $(VENV)/tpu.stamp lint types  ## everything: also the full matrices and the largest plans
	$(TPU) $(BIN)/python -m pytest -m "slow or full or not slow" -n $(WORKERS) $(ARGS)

.PHONY: mutants
mutants: $(VENV)/test.stamp  ## write one-line faults into copies of jaxnlp and see that a test fails for each; ARGS="--only nn"
	$(BIN)/python -m tests.mutants $(ARGS)

.PHONY: docs-figures
docs-figures: $(VENV)/test.stamp  ## check the figures that the documentation shows against those that are stored
	$(BIN)/python -m pytest tests/docs_figures.py $(ARGS)

.PHONY: notebooks
notebooks: $(VENV)/test.stamp  ## run the notebooks of colab/ on tiny configs, and clear what an editor left in them
	$(BIN)/python -m tests.colab.clear
	$(BIN)/python -m pytest -m "slow or full or not slow" tests/colab $(ARGS)

.PHONY: docs
docs: $(VENV)/docs.stamp  ## build the documentation in build/docs; warnings and broken internal links are errors
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -W --keep-going -q -j auto -b html -d build/doctrees docs build/docs $(ARGS)
	@echo "open build/docs/index.html"

.PHONY: docs-links
docs-links: $(VENV)/docs.stamp  ## request every external link of the documentation; needs the network
	JAX_PLATFORMS=cpu $(BIN)/python -m sphinx -q -b linkcheck -d build/doctrees docs build/links $(ARGS)

.PHONY: lint
lint: $(VENV)/test.stamp  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.PHONY: types
types: $(VENV)/test.stamp  ## pyright
	$(BIN)/pyright

.PHONY: format
format: $(VENV)/test.stamp  ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: setup  ## speed beside nanoGPT, nanodo and Hugging Face (installs them in .bench)
	$(BIN)/python -m experiments.bench $(ARGS)

.PHONY: lock
lock: $(VENV)/python.stamp  ## resolve setup.py anew into the lock files
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile setup.py --extra hf --universal --python-version 3.11 --no-annotate --quiet --upgrade \
		--custom-compile-command "make lock" -o requirements.lock
	$(BIN)/uv pip compile setup.py --extra hf --extra test --extra dev --universal --python-version 3.11 --no-annotate --quiet \
		--upgrade --custom-compile-command "make lock" -c requirements.lock -o requirements-test.lock
	$(BIN)/uv pip compile setup.py --extra hf --extra docs --universal --python-version 3.11 --no-annotate --quiet --upgrade \
		--custom-compile-command "make lock" -c requirements.lock -c requirements-test.lock -o requirements-docs.lock

.PHONY: clean
clean:  ## remove the environment and the caches of tools; keeps runs
	rm -rf $(VENV) .bench .pytest_cache .ruff_cache *.egg-info build
