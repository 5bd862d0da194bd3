# graftwork: `make demo` shows the whole promise, `make test` checks it. Both build .venv first when it is missing or stale.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-full test-gpu check docs peers bench bench-full bench-peers clean

VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
CANDIDATES := $(PYTHON) python3.11 python3.12 python3.13 python3 python
USABLE := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))
# The demo and the tests need no hub: their encoder comes from an installed package.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
# Waiting threads sleep instead of spinning: without it a busy machine makes small models many times slower.
PATIENT := OMP_WAIT_POLICY=PASSIVE
# A process for each processor, each on one thread; the tests of a file stay together, with what they set up.
SPREAD := --numprocesses logical --maxprocesses 8 --dist loadfile

help:           ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/make \1\t\2/' | expand -t 18

setup: $(INSTALLED)  ## make .venv with the versions of constraints.txt

$(INSTALLED): pyproject.toml constraints.txt
	@for python in $(CANDIDATES); do \
	  if "$$python" -c '$(USABLE)' >/dev/null 2>&1; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "graftwork needs Python 3.11 or newer with the venv module; tried: $(CANDIDATES)." >&2; \
	  echo "Install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; \
	fi; \
	echo "setup: $$("$$found" --version) in $(VENV)"; "$$found" -m venv $(VENV)
	$(PY) -m pip install --quiet --constraint constraints.txt torch
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup     ## train, package, compose and serve adapters on a real encoder; about five minutes on two cores
	$(OFFLINE) $(VENV)/bin/graftwork demo

test: setup     ## the tests, with about 100 examples a property
	$(OFFLINE) $(PATIENT) OMP_NUM_THREADS=1 GRAFTWORK_PROFILE=default $(PY) -m pytest $(SPREAD)

test-full: setup  ## the same with 1000 examples a property, and the long runs
	$(OFFLINE) $(PATIENT) OMP_NUM_THREADS=1 GRAFTWORK_PROFILE=full $(PY) -m pytest $(SPREAD)

test-gpu: setup  ## what needs a GPU; the other tests see none
	$(OFFLINE) GRAFTWORK_GPU=1 $(PY) -m pytest tests/test_gpu.py tests/compose/test_bank_triton.py

check: setup    ## lint, format and types; changes nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

docs: setup     ## write docs/cli.md from --help, then run the blocks of every page
	$(PY) docs/generate.py
	$(OFFLINE) $(PY) -m pytest tests/house/test_readme.py tests/house/test_cli_page.py

# AdapterHub's library needs an older transformers than ours, so it has an environment of its own; PEFT has one beside us.
SHARED := $(or $(GRAFTWORK_SHARED),../shared)
HUB := .venv-adapters
PEFT := .venv-peft

peers: setup $(HUB)/.installed $(PEFT)/.installed  ## compare with the real adapters 1.3.0 and peft; needs the shared data
	$(OFFLINE) $(PY) benchmarks/peers/write_cases.py $(SHARED)/conformance $(HUB)/cases
	$(OFFLINE) $(HUB)/bin/python benchmarks/peers/load_cases.py $(SHARED)/conformance $(HUB)/cases
	$(OFFLINE) $(PEFT)/bin/python benchmarks/peers/peft_both_ways.py $(SHARED)/conformance/bases
	rm -rf $(HUB)/fresh
	$(OFFLINE) $(HUB)/bin/python benchmarks/peers/make_golden.py $(HUB)/fresh --thin $(or $(THIN),1)
	$(OFFLINE) $(PATIENT) $(PY) benchmarks/conformance.py $(HUB)/fresh --quiet

# One script a question: those that write a page of results, and those that print theirs.
RESULTS := benchmarks/results
WRITTEN := $(patsubst benchmarks/%.py,%,$(wildcard $(patsubst %,benchmarks/%.py,scale shared_trunk training together overhead written_out)))
PRINTED := $(patsubst benchmarks/%.py,%,$(wildcard $(patsubst %,benchmarks/%.py,fold_site dispatch)))
# Those of WRITTEN that measure in bfloat16, too, on a page of their own; the others are float32.
HALVED := $(filter scale training overhead,$(WRITTEN))
MEASURE := $(OFFLINE) $(PATIENT) $(PY) benchmarks

bench: setup bench-peers  ## every speed figure, beside the peers; about a quarter of an hour on two quiet cores
	$(MEASURE)/execution.py --curves --seconds 0.8 --out $(RESULTS)/execution.md
	@set -ex; for one in $(WRITTEN); do $(MEASURE)/$$one.py --quick --out $(RESULTS)/$$one.md; done
	@set -ex; for one in $(PRINTED); do $(MEASURE)/$$one.py --quick; done

bench-full: setup bench-peers  ## the same with more calls, in float32 and bfloat16, and whole sweeps
	$(MEASURE)/execution.py --curves --seconds 12 --dtypes float32,bfloat16 --out $(RESULTS)/execution.md
	@set -ex; for one in $(WRITTEN); do $(MEASURE)/$$one.py --out $(RESULTS)/$$one.md; done
	@set -ex; for one in $(HALVED); do $(MEASURE)/$$one.py --dtype bfloat16 --out $(RESULTS)/$${one}_bfloat16.md; done
	@set -ex; for one in $(PRINTED); do $(MEASURE)/$$one.py; done

bench-peers: setup
	@for peer in $(HUB) $(PEFT); do $(MAKE) --no-print-directory $$peer/.installed \
	  || echo "SKIPPED: $$peer cannot be built here, so that peer is not measured"; done

$(HUB)/.installed: | $(INSTALLED)
	$(PY) -m venv $(HUB)
	$(HUB)/bin/python -m pip install --quiet 'adapters==1.3.0' $(shell grep '^torch==' constraints.txt)
	@touch $@

$(PEFT)/.installed: | $(INSTALLED)
	$(PY) -m venv $(PEFT)
	$(PEFT)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(PEFT)/bin/python -m pip install --quiet --constraint constraints.txt --editable . 'peft==0.21.2'
	@touch $@

clean:          ## remove .venv, caches and build leftovers
	rm -rf $(VENV) $(HUB) $(PEFT) build dist .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
