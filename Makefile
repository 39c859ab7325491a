# Needs python3 (3.11 or newer) and make. Every target sets up its own environment.
#   make demo                      train on ARC tasks, print the table, draw the curves
#   make test                      the test suite
#   make test PYTHON=python3.12    the same with another interpreter, side by side
#   make fuzz                      2000 random combinations, each right or an error
#   make evidence                  does consensus help? trains for 1.5 hours (SMOKE=1: minutes)
#   make docs                      the site, in docs/_build/html
#   make mutants                   what the tests do not see, if it is changed
#   make aot-cuda, make aot-tpu    what an H100, a TPU would run, compiled without one
# ARGS adds options: make test ARGS="-k sign", make demo ARGS="--steps 50 --seeds 3".

PYTHON ?= python3
VENV := .venv$(if $(filter-out python3,$(PYTHON)),-$(notdir $(PYTHON)))
ARGS ?=
BIN := $(VENV)/bin
# The extras of pyproject.toml that a target needs; each is installed once.
INSTALLED := $(VENV)/.installed-

# Programs compiled for tests, of this machine, for a week: a second run takes less.
COMPILED := $(CURDIR)/$(VENV)/compiled-$(shell uname -n)

# Tests run on all processors, of which each takes some GiB.
WORKERS := $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n > 8 ? 8 : n)))

NOTEBOOKS = $(wildcard notebooks/*.ipynb)

.PHONY: help demo test lint format types doctest notebooks docs dist bench fuzz mutants clean
.PHONY: evidence tables
.PHONY: aot-cuda aot-tpu
.NOTPARALLEL:

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile
	@echo "Targets: demo test lint format types doctest notebooks docs dist bench evidence tables fuzz mutants aot-cuda aot-tpu clean"

demo: $(INSTALLED)demo
	$(BIN)/python -m consensus_optax compare --task arc \
	  --rules mean,sign_consensus,cosine_filter,subspace_weighting \
	  --out runs/demo --overwrite $(ARGS)

test mutants: export JAX_COMPILATION_CACHE_DIR ?= $(COMPILED)
test mutants: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0
test mutants: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES ?= -1

test: $(INSTALLED)test
	@mkdir -p $(COMPILED) && find $(COMPILED) -type f -mtime +7 -delete
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadscope tests $(ARGS)

lint: $(INSTALLED)dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)dev
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# The first without tests/conftest.py: examples run as they do for a reader, but that
# they are compiled in two thirds of the time.
doctest: $(INSTALLED)test
	XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=0" \
	  $(BIN)/python -m pytest --doctest-modules consensus_optax $(ARGS)
	$(BIN)/python -m pytest -m slow tests/test_readme.py

# Executed at smoke size and not written back; CONTRIBUTING.md says how to refresh them.
notebooks: $(INSTALLED)dev
	@test -n "$(NOTEBOOKS)" || { echo "notebooks/ has no notebook"; exit 1; }
	CONSENSUS_OPTAX_SMOKE=1 $(BIN)/jupyter-execute --timeout=600 $(NOTEBOOKS)

# Of docstrings, docs/ and examples/; a warning is an error.
docs: $(INSTALLED)docs
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html $(ARGS)
	@echo "wrote docs/_build/html/index.html"

# Wheel and sdist, in dist/, and a try of both.
dist:
	.ci/dist

bench: $(INSTALLED)dev
	$(BIN)/python -m benchmarks $(ARGS)

fuzz: $(INSTALLED)test
	$(BIN)/python -m tests._fuzz $(ARGS)

# What is finished is kept: after Ctrl-C or a crash the same command goes on.
evidence: $(INSTALLED)dev
	$(BIN)/python -m benchmarks.quality --jobs 2 $(if $(SMOKE),--smoke) $(ARGS)

tables: $(INSTALLED)dev
	$(BIN)/python -m benchmarks.quality --tables $(ARGS)

# In an environment of its own: `cosmic-ray` and what it brings along serve nothing else.
mutants:
	$(MAKE) VENV=.venv-mutants .venv-mutants/.installed-mutants
	.venv-mutants/bin/python -m tests._mutants $(ARGS)

# In environments of their own: one process loads the compiler for one kind of device.
aot-cuda aot-tpu:
	$(MAKE) VENV=.venv-$@ .venv-$@/.installed-$@
	.venv-$@/bin/python -m benchmarks.accelerators $(ARGS)

clean:
	rm -rf .venv .venv-* runs build dist docs/_build .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(INSTALLED)%: pyproject.toml | $(VENV)/.created
	@echo "Installing consensus_optax[$*] into $(VENV), once: a minute or two."
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c '' 2>/dev/null || { echo "$(PYTHON) does not run here." \
	  "Name a Python 3.11 or newer: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "consensus_optax needs Python 3.11 or newer; $(PYTHON) is" \
	    "$$($(PYTHON) --version). Name another: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@touch $@
