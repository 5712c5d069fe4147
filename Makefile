# make demo    trains real models with FusedSaLSa beside Adam: progress, a table and a plot
# make test    passes the tests, lint and types
# make test-slow    passes the tests that `make test` leaves out
# make bench   what a step costs and what training reaches, in less than half an hour
# make bench-full    the same with everything and three seeds; hours, and goes on where it was stopped
# make docs    builds the documentation as a site, in build/docs
# make gpu     the first hour on a GPU: tests, sanitizers, benches, a summary; goes on where it was stopped
# make test-gpu    passes the tests with the Python that is there, and its torch for CUDA
# make sanitize    passes the kernels' tests under sanitizers
# make fuzz    passes the property tests with many more cases
# All but gpu and test-gpu build their own environment in .venv and leave the system alone.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := .ci/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-slow bench bench-full docs gpu test-gpu sanitize fuzz lint clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/.installed
	$(BIN)/python -m bench demo

test: $(VENV)/.installed lint
	$(BIN)/python -m salsa_fused
	$(BIN)/python -m pytest -q -m "not slow" $(TWO_PROCESSES)
	$(BIN)/python -m bench report --check

TWO_PROCESSES := -n 2 --dist worksteal
test-slow: $(VENV)/.installed
	$(BIN)/python -m pytest -q -m slow $(TWO_PROCESSES)

# Where the results go; what is there already is measured again, but for finished training runs.
RESULTS := bench/results/local
BENCH := $(BIN)/python -m bench

bench: $(VENV)/.installed
	$(BENCH) data
	$(BENCH) kernels --rounds 20 --json $(RESULTS)/kernels.json
	$(BENCH) step --rounds 5 --json $(RESULTS)/step.json
	$(BENCH) memory --json $(RESULTS)/memory.json
	$(BENCH) train --seeds 1 --data digits-cnn digits-mlp plays-gpt --json $(RESULTS)/train.json
	$(BENCH) report --folder $(RESULTS)

bench-full: $(VENV)/.installed
	$(BENCH) data
	$(BENCH) kernels --json $(RESULTS)/kernels.json
	$(BENCH) host --json $(RESULTS)/host.json
	$(BENCH) step --json $(RESULTS)/step.json
	$(BENCH) memory --json $(RESULTS)/memory.json
	$(BENCH) demo --out $(RESULTS)
	$(BENCH) train --json $(RESULTS)/train.json
	$(BENCH) train --family --json $(RESULTS)/family.json
	$(BENCH) report --folder $(RESULTS)

docs: $(VENV)/.installed
	$(BIN)/python docs/build.py

# No network and no installing: the kernels are built in place, and tested there, whatever is
# installed.
gpu test-gpu: export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
gpu:
	$(PYTHON) setup.py --quiet build_ext --inplace
	$(PYTHON) -m bench gpu
test-gpu:
	$(PYTHON) setup.py --quiet build_ext --inplace
	$(PYTHON) -m salsa_fused
	$(PYTHON) -m pytest -q

# The C++ kernels under the address and the undefined-behaviour sanitizer, in a copy of the tree; and
# the GPU kernels' PTX, translated, under the first of them.
# libstdc++ is named so that the sanitizer finds it first and can follow torch's exceptions.
SANITIZED := build/sanitized
sanitize: $(VENV)/.installed
	rm -rf $(SANITIZED) && mkdir -p $(SANITIZED)
	cp -r csrc salsa_fused bench tests setup.py pyproject.toml README.md LICENSE $(SANITIZED)
	rm -f $(SANITIZED)/salsa_fused/*.so
	cd $(SANITIZED) && SALSA_FUSED_SANITIZE=1 $(abspath $(BIN))/python setup.py --quiet build_ext --inplace
	cd $(SANITIZED) && SALSA_FUSED_SANITIZE=1 ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	  $(abspath $(BIN))/python -m pytest -q --capture=sys -m "not slow" \
	  tests/kernels/test_kernels.py tests/kernels/test_formulas.py tests/optimizer/test_changes.py \
	  tests/kernels/test_storage.py tests/optimizer/test_masters.py \
	  tests/kernels/test_watch.py tests/search/test_trajectories.py \
	  tests/ptx/test_bits.py tests/ptx/test_far.py tests/ptx/test_runs.py

# Every property test with 10,000 cases instead of 200; hours.
fuzz: $(VENV)/.installed
	HYPOTHESIS_PROFILE=fuzz $(BIN)/python -m pytest -q tests/kernels/test_kernels.py \
	  tests/optimizer/test_changes.py tests/ptx/test_bits.py

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# An empty environment; torch comes first and pinned, so that nothing else chooses its version.
$(VENV)/.torch: $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "salsa_fused needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot build virtual environments: its venv module is missing."; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv (and python3-dev for the kernels)"; \
	  exit 1; }
	@echo "== $(VENV): a virtual environment with torch (a large download, once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) torch
	@touch $@

# The package itself, with build isolation, as a user installs it; changed sources rebuild it.
$(VENV)/.installed: $(VENV)/.torch pyproject.toml setup.py $(wildcard csrc/*)
	@echo "== salsa_fused: building the C++ kernels; fetching what demo and tests need"
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable ".[bench,test,lint]"
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f salsa_fused/*.so salsa_fused/_build.json
